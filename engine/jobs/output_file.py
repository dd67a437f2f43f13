"""The output file: the only record of what is done.

Each answered line is appended as one whole record by one write, so that after a kill at any moment
the file holds whole records and at most one torn tail, which the next start cuts off. A restart
learns everything from the records themselves: each names its line and the digest of its content.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from ...errors import JobError

try:
    import fcntl
except ImportError:  # not a POSIX system: two jobs on one output are then not told apart
    fcntl = None

_FSYNC_SECONDS = 1.0


class OutputFile:
    """An output opened for appending by this process alone.

    Use as a context manager. Raises JobError if the path is not a regular file or another running
    job holds it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = _check_output_path(path)
        self._fd = self._open_locked()
        self._last_fsync = time.monotonic()
        self._is_synced = True

    def __enter__(self) -> OutputFile:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def nbytes(self) -> int:
        """Current size of the file."""
        return os.fstat(self._fd).st_size

    def repair(self) -> int:
        """Cut off a torn last record (one without its line end); returns the bytes removed."""
        size = self.nbytes
        with self.path.open("rb") as file:
            end = _end_of_last_line(file, size)
        if end < size:
            os.ftruncate(self._fd, end)
        return size - end

    def append(self, record: dict[str, Any]) -> None:
        """Write one record and its line end with one write; on failure nothing of it stays behind."""
        data = encode_record(record)
        start = self.nbytes
        self._is_synced = False
        try:
            written = 0
            while written < len(data):
                written += os.write(self._fd, data[written:])
        except BaseException:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, start)
            raise
        now = time.monotonic()
        if now - self._last_fsync > _FSYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        """Ask the system to put everything written so far on the disk."""
        os.fsync(self._fd)
        self._last_fsync = time.monotonic()
        self._is_synced = True

    def clear(self) -> None:
        """Drop every record."""
        os.ftruncate(self._fd, 0)

    def read_records(self) -> Iterator[bytes]:
        """Yield every record's line, without its line end, from the start of the file."""
        with self.path.open("rb") as file:
            for line in file:
                yield line.rstrip(b"\n")

    def count_records(self, start: int = 0) -> int:
        """Records from byte ``start`` on, counted in the file itself."""
        with self.path.open("rb") as file:
            file.seek(start)
            return sum(piece.count(b"\n") for piece in iter(lambda: file.read(1 << 20), b""))

    def rewrite(self, keep: Callable[[int], bool]) -> None:
        """Replace the file by the records whose number (0-based) ``keep`` accepts.

        The new file is complete and on disk before it takes the old one's name: a kill leaves either.
        """
        fresh = _rewrite_path(self.path)
        fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o666)
        try:
            _lock(fd, self.path)
            with os.fdopen(os.dup(fd), "wb") as file:
                file.writelines(record + b"\n" for n, record in enumerate(self.read_records()) if keep(n))
            os.fsync(fd)
            shutil.copymode(self.path, fresh)
            os.replace(fresh, self.path)
        except BaseException:
            os.close(fd)
            raise
        os.close(self._fd)
        self._fd = fd

    def close(self) -> None:
        """Sync and release the file; a second call does nothing."""
        if self._fd < 0:
            return
        try:
            if not self._is_synced:
                self.sync()
        finally:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def _open_locked(self) -> int:
        while True:
            try:
                fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            except OSError as error:
                raise JobError(f"The output file {str(self.path)!r} cannot be opened: {error}.") from error
            try:
                _lock(fd, self.path)
                # rewrite() may have given the name to another file between our open and our lock
                if os.path.samestat(os.fstat(fd), os.stat(self.path)):
                    _rewrite_path(self.path).unlink(missing_ok=True)  # left by a kill in rewrite()
                    return fd
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)


def encode_record(record: dict[str, Any]) -> bytes:
    """One record as UTF-8 JSON and a line end.

    Lone surrogates are written as \\u escapes. JSON has no infinities: the log-probability of an
    impossible token is written as -9999.0, as OpenAI does, any other number that is not finite as null.
    """
    try:
        text = json.dumps(record, ensure_ascii=False, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(record), ensure_ascii=False, allow_nan=False)
    try:
        return text.encode("utf-8") + b"\n"
    except UnicodeEncodeError:
        return json.dumps(json.loads(text), ensure_ascii=True).encode("ascii") + b"\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return -9999.0 if value < 0 else None
    return value


def _check_output_path(path: str | Path) -> Path:
    if str(path) == "-":
        raise JobError("The job output cannot be standard output: it is what a restarted job resumes from.")
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        raise JobError(f"The output {str(path)!r} is not a regular file.")
    if not path.parent.is_dir():
        raise JobError(f"The output folder {str(path.parent)!r} does not exist.")
    return path


def _rewrite_path(path: Path) -> Path:
    return path.with_name(path.name + ".rewrite")


def _lock(fd: int, path: Path) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise JobError(
            f"Another running job is writing {str(path)!r}. Wait for it, stop it, or choose another output."
        ) from error


def _end_of_last_line(file: IO[bytes], size: int) -> int:
    """Offset just after the last line end within the first ``size`` bytes."""
    step = 1 << 16
    stop = size
    while stop > 0:
        start = max(0, stop - step)
        file.seek(start)
        found = file.read(stop - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        stop = start
    return 0
