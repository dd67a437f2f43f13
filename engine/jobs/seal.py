"""The checksum at the end of every record and of the job file, which finds any bit that has flipped since.

The last member of a sealed JSON object is ``"crc"``: the CRC-32 (RFC 1952, as zlib has it) of all bytes of
the line before ``, "crc"``, as eight hexadecimal digits. It covers the bytes and not their meaning: a record
that somebody has formatted anew is no longer what the job wrote either.
"""

from __future__ import annotations

import re
import zlib

_FORM = re.compile(rb', "crc": "[0-9a-f]{8}"}')
_LENGTH = len(', "crc": "00000000"}')


def seal(line: bytes) -> bytes:
    """A JSON object ``{...}`` in one line, sealed; one that is sealed stays as it is."""
    return line if is_sealed(line) else line[:-1] + _end(line[:-1])


def is_sealed(line: bytes) -> bool:
    """Whether ``line`` (without its line end) is what was sealed, to the bit."""
    return line[-_LENGTH:] == _end(line[:-_LENGTH])


def bears_seal(line: bytes) -> bool:
    """Whether ``line`` was sealed once, though damaged by now: it has a seal, or all of one but a bit."""
    return _FORM.fullmatch(line[-_LENGTH:]) is not None or _is_one_bit_off(line)


def mended(line: bytes) -> bytes | None:
    """The sealed line that differs from ``line`` in one bit, or None if there is none."""
    body, end = line[:-_LENGTH], line[-_LENGTH:]
    if _is_one_bit_off(line):
        return body + _end(body)
    if not _FORM.fullmatch(end):
        return None
    wrong = zlib.crc32(body) ^ int(end[-10:-2], 16)
    # CRCs are linear: what a flip does to one depends on nothing but its distance from the end
    zero = zlib.crc32(b"\0")
    effects = [zlib.crc32(bytes([1 << bit])) ^ zero for bit in range(8)]
    for place in reversed(range(len(body))):
        if wrong in effects:
            fixed = bytearray(line)
            fixed[place] ^= 1 << effects.index(wrong)
            return bytes(fixed)
        effects = [zlib.crc32(b"\0", effect) ^ zero for effect in effects]
    return None


def _end(body: bytes) -> bytes:
    return b', "crc": "%08x"}' % zlib.crc32(body)


def _is_one_bit_off(line: bytes) -> bool:
    """Whether the seal itself has lost a bit, and nothing else."""
    end = line[-_LENGTH:]
    difference = int.from_bytes(end, "big") ^ int.from_bytes(_end(line[:-_LENGTH]), "big")
    return len(end) == _LENGTH and difference.bit_count() == 1
