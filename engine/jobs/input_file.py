"""Reading a JSONL input of any size, one line at a time.

Memory is bounded by the longest line: a line above ``MAX_LINE_BYTES`` is hashed and skipped in
pieces, never held. What a file holds is told by its first bytes, whatever it is called: gzip is unpacked,
and what holds no lines of text is refused by name.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ...errors import JobError
from .bounds import MAX_LINE_BYTES

_PIECE = 1 << 20
_BOM = b"\xef\xbb\xbf"
_GZIP_MAGIC = b"\x1f\x8b"
_HEAD_BYTES = 4096  # looked at to tell what a file holds
_UTF16 = "text in UTF-16 or UTF-32", "Write it in UTF-8, e.g. with `iconv -f UTF-16 -t UTF-8`."
_UNPACK = "Unpack it first, or pack it with gzip, which is read as it is."
_CONVERT = "Write its rows as lines of JSON first."

# first bytes -> what it is, and what to do
_NO_LINES: tuple[tuple[bytes, str, str], ...] = (
    (b"\x28\xb5\x2f\xfd", "packed with zstd", "Unpack it first (`zstd -d`), or pack it with gzip instead."),
    (b"BZh", "packed with bzip2", _UNPACK),
    (b"\xfd7zXZ\0", "packed with xz", _UNPACK),
    (b"\x04\x22\x4d\x18", "packed with lz4", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"PK\x03\x04", "a zip archive (or a spreadsheet)", _UNPACK),
    (_GZIP_MAGIC, "packed with gzip twice", "Unpack it once (`gzip -d`)."),
    (b"PAR1", "a Parquet file", _CONVERT),
    (b"ARROW1", "an Arrow file", _CONVERT),
    (b"SQLite format 3", "an SQLite database", _CONVERT),
    (b"GGUF", "a GGUF model", "The input is the file with the prompts."),
    (b"\xff\xfe", *_UTF16),
    (b"\xfe\xff", *_UTF16),
)


@dataclass(frozen=True)
class RawLine:
    """One line of a file: 0-based ``index``, its bytes without the line ending.

    ``oversized`` is 0, or the length of a line too long to be held; ``data`` then is a digest of it.
    """

    index: int
    data: bytes
    oversized: int = 0

    @property
    def is_blank(self) -> bool:
        """Whether the line holds nothing but white space (such lines are not records)."""
        return not self.data.strip()


def read_lines(path: Path, *, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[RawLine]:
    """Yield every line of ``path`` (blank ones too), in order.

    Raises JobError if the file cannot be read, holds something else than text, or its gzip stream is damaged.
    """
    try:
        with _open(path) as file:
            yield from _split(file, max_line_bytes)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise JobError(f"The gzip input {str(path)!r} is damaged or cut short: {error}.") from error
    except OSError as error:
        raise JobError(f"The input file {str(path)!r} cannot be read: {error}.") from error


def nth_line(path: Path, index: int) -> bytes:
    """Return line ``index`` (0-based) of ``path``; for error messages, so it may read the whole file."""
    for line in read_lines(path):
        if line.index == index:
            return line.data
    raise JobError(f"{str(path)!r} has no line {index + 1}.")


@contextlib.contextmanager
def _open(path: Path) -> Iterator[io.BufferedIOBase]:
    with io.BufferedReader(io.FileIO(path), buffer_size=_PIECE) as file:
        if file.peek(2)[:2] == _GZIP_MAGIC:
            with gzip.GzipFile(fileobj=file) as unpacked:
                _check_content(path, unpacked.peek(_HEAD_BYTES))
                yield unpacked
        else:
            _check_content(path, file.peek(_HEAD_BYTES))
            yield file


def _check_content(path: Path, head: bytes) -> None:
    """Raise JobError if a file that begins with ``head`` holds no lines of text."""
    for magic, what, advice in _NO_LINES:
        if head.startswith(magic):
            raise JobError(f"The input {str(path)!r} is {what}, not JSONL. {advice}")
    head = head[:_HEAD_BYTES].removeprefix(_BOM).lstrip()
    is_object = head.startswith(b"{") and b"\0" not in head[:4]
    if b"\0" in head and not is_object:
        is_wide = head[:4].replace(b"\0", b"") in (b"{", b'{"', b"{ ")
        what, advice = _UTF16 if is_wide else ("binary data", _CONVERT)
        raise JobError(f"The input {str(path)!r} is {what}, not JSONL. {advice}")


def _split(file: io.BufferedIOBase, limit: int) -> Iterator[RawLine]:
    index = 0
    while data := file.readline(limit + 1):
        if index == 0:
            data = data.removeprefix(_BOM)
        if len(data) > limit and not data.endswith(b"\n"):
            yield _skip_long_line(file, index, data)
        else:
            yield RawLine(index, data.rstrip(b"\r\n"))
        index += 1


def _skip_long_line(file: io.BufferedIOBase, index: int, start: bytes) -> RawLine:
    """Read past a line that is too long to hold, keeping only its length and digest."""
    digest = hashlib.blake2b(start, digest_size=16)
    length = len(start)
    while piece := file.readline(_PIECE):
        digest.update(piece)
        length += len(piece)
        if piece.endswith(b"\n"):
            break
    return RawLine(index, digest.hexdigest().encode(), oversized=length)
