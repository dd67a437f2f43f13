"""The output file: the only record of what is done.

Each answered line is appended as one whole, sealed record by one write, so that after a kill at any moment
the file holds whole records and at most one torn tail, which the next start cuts off. A restart
learns everything from the records themselves: each names its line and the digest of its content.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import IO, Any

from ...errors import JobError
from .paths import check_output_path
from .record_json import encode_record
from .scratch import RECORDS, Scratch
from .seal import seal

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # not a POSIX system: two jobs on one output are then not told apart
    fcntl = None

logger = logging.getLogger("rootlet.jobs")

_FSYNC_SECONDS = 1.0


class OutputFile:
    """An output opened for appending by this process alone.

    Use as a context manager. A file that was made here and is still empty goes again at the end, unless
    ``begun`` is set: then it belongs to a job that can be resumed. Raises JobError if the path is not a
    regular file or another running job holds it, and wherever the disk fails; ``failed`` then is set.
    ``is_new``: the file was made here.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = check_output_path(path)
        self.scratch = Scratch(self.path)
        self.begun = self.failed = False
        self._fd = -1
        self.is_new = False
        with self._disk("opened"):
            self._fd, self.is_new = self._open_locked()
            try:
                with self._reader() as file:
                    self._end = _end_of_last_line(file, self.nbytes)  # of the last whole record
            except BaseException:
                self.close()
                raise
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

    @property
    def torn_tail(self) -> bytes:
        """The first bytes, at most 64, of what stands behind the last whole record."""
        with self._reader() as file:
            file.seek(self._end)
            return file.read(64)

    def repair(self) -> int:
        """Cut off a torn last record (one without its line end); returns the bytes removed."""
        torn = self.nbytes - self._end
        if torn:
            with self._disk("repaired"):
                os.ftruncate(self._fd, self._end)
        return torn

    def append(self, record: dict[str, Any]) -> None:
        """Write one record and its line end with one write; on failure nothing of it stays behind."""
        data = seal(encode_record(record)) + b"\n"
        self._check_in_place()
        start = self._end
        self._is_synced = False
        with self._disk("written"):
            try:
                written = 0
                while written < len(data):
                    written += os.write(self._fd, data[written:])
                self._end = start + written
            except BaseException:
                self._end = start
                with contextlib.suppress(OSError):
                    os.ftruncate(self._fd, start)
                raise
        now = time.monotonic()
        if now - self._last_fsync > _FSYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        """Ask the system to put everything written so far on the disk; the file must be where it was."""
        self._check_in_place()
        with self._disk("written"):
            os.fsync(self._fd)
        self._last_fsync = time.monotonic()
        self._is_synced = True

    def clear(self) -> None:
        """Drop every record."""
        with self._disk("emptied"):
            os.ftruncate(self._fd, 0)
        self._end = 0

    def read_records(self) -> Iterator[bytes]:
        """Yield every whole record's line, without its line end, from the start of the file."""
        end = self._end
        with self._disk("read"), self._reader() as file:
            while file.tell() < end:
                yield file.readline()[:-1]

    def count_records(self, start: int = 0) -> int:
        """Records from byte ``start`` on, counted in the file itself."""
        with self._disk("read"), self._reader() as file:
            file.seek(start)
            return sum(piece.count(b"\n") for piece in iter(lambda: file.read(1 << 20), b""))

    def rewrite(self, keep: Callable[[int], bool] = lambda _: True) -> None:
        """Replace the file by the records whose number (0-based) ``keep`` accepts, each sealed.

        The new file is complete and on disk before it takes the old one's name: a kill leaves either.
        """
        with self._disk("rewritten"), self.scratch.place(RECORDS) as fresh:
            fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o666)
            try:
                _lock(fd, self.path)
                with os.fdopen(os.dup(fd), "wb") as file:
                    kept = (record for n, record in enumerate(self.read_records()) if keep(n))
                    file.writelines(seal(record) + b"\n" for record in kept)
                os.fsync(fd)
                shutil.copymode(self.path, fresh)
                os.replace(fresh, self.path)
            except BaseException:
                os.close(fd)
                raise
        os.close(self._fd)
        self._fd = fd
        self._end = self.nbytes

    def close(self) -> None:
        """Release the file; a second call does nothing. It is surely on the disk only after :meth:`sync`."""
        if self._fd < 0:
            return
        try:
            if self.is_new and not self.begun and not self.nbytes:
                self.path.unlink(missing_ok=True)  # before the lock goes
            elif not self._is_synced and not self.failed:
                os.fsync(self._fd)
        except OSError as error:
            logger.warning("The last records of %s may not be on the disk yet: %s", self.path, error)
        finally:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def _check_in_place(self) -> None:
        """Raise JobError if the file is no longer found under its name, or somebody else wrote to it."""
        mine = os.fstat(self._fd)
        try:
            found = os.stat(self.path)
        except OSError:
            found = None
        if found is None or not os.path.samestat(found, mine):
            what = "deleted" if mine.st_nlink == 0 else "moved away or replaced"
        elif found.st_size != self._end:
            what = "written to by another program"
        else:
            return
        self.failed = True
        raise JobError(
            f"The output {str(self.path)!r} was {what} while the job was running. Put it back as it was and "
            "run the same job again, or start anew with another output."
        )

    @contextlib.contextmanager
    def _disk(self, what: str) -> Iterator[None]:
        """Errors of the system become JobErrors."""
        try:
            yield
        except OSError as error:
            self.failed = True
            raise JobError(
                f"The output {str(self.path)!r} cannot be {what}: {error}. Records that are whole are kept: "
                "when the cause is gone, the same job goes on."
            ) from error

    def _reader(self) -> IO[bytes]:
        """The file from its start, by whatever name it goes now; one at a time."""
        file = os.fdopen(os.dup(self._fd), "rb")
        file.seek(0)
        return file

    def _open_locked(self) -> tuple[int, bool]:
        """A descriptor that holds the lock, and whether the file was made for it."""
        flags = os.O_RDWR | os.O_APPEND
        while True:
            try:
                fd, is_new = os.open(self.path, flags | os.O_CREAT | os.O_EXCL, 0o666), True
            except FileExistsError:
                try:
                    fd, is_new = os.open(self.path, flags), False
                except FileNotFoundError:  # another job has just given it up
                    continue
            try:
                _lock(fd, self.path)
                # rewrite() may have given the name to another file between our open and our lock
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(fd), os.stat(self.path)):
                        return fd, is_new
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)


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
