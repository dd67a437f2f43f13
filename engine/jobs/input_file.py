"""Reading a JSONL input of any size, one line at a time.

Memory is bounded by the longest line: a line above ``MAX_LINE_BYTES`` is hashed and skipped in
pieces, never held. Gzip is recognised by its first two bytes, whatever the file is called.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ...errors import JobError

MAX_LINE_BYTES = 64 << 20
_PIECE = 1 << 20
_BOM = b"\xef\xbb\xbf"
_GZIP_MAGIC = b"\x1f\x8b"


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


def check_input_path(path: str | Path) -> Path:
    """Return ``path`` if a job can read it; raises JobError for "-", a missing file or a folder."""
    if str(path) == "-":
        raise JobError(
            "The job input cannot be standard input: a restarted job must be able to read it again. "
            "Write it to a file first."
        )
    path = Path(path)
    if not path.exists():
        raise JobError(f"The input file {str(path)!r} does not exist.")
    if not path.is_file():
        raise JobError(f"The input {str(path)!r} is not a regular file.")
    return path


def read_lines(path: Path, *, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[RawLine]:
    """Yield every line of ``path`` (blank ones too), in order.

    Raises JobError if the file cannot be read or its gzip stream is damaged.
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
def _open(path: Path) -> Iterator[IO[bytes]]:
    with path.open("rb", buffering=_PIECE) as file:
        if file.peek(2)[:2] == _GZIP_MAGIC:
            with gzip.open(file, "rb") as unpacked:
                yield unpacked
        else:
            yield file


def _split(file: IO[bytes], limit: int) -> Iterator[RawLine]:
    index = 0
    while data := file.readline(limit + 1):
        if index == 0:
            data = data.removeprefix(_BOM)
        if len(data) > limit and not data.endswith(b"\n"):
            yield _skip_long_line(file, index, data)
        else:
            yield RawLine(index, data.rstrip(b"\r\n"))
        index += 1


def _skip_long_line(file: IO[bytes], index: int, start: bytes) -> RawLine:
    """Read past a line that is too long to hold, keeping only its length and digest."""
    digest = hashlib.blake2b(start, digest_size=16)
    length = len(start)
    while piece := file.readline(_PIECE):
        digest.update(piece)
        length += len(piece)
        if piece.endswith(b"\n"):
            break
    return RawLine(index, digest.hexdigest().encode(), oversized=length)
