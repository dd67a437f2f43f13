"""``<output>.rootlet-tmp``: the folder in which new versions of a job's own files come about.

It is there for moments only, but a kill may leave it. That it is ours shows by what is in it: nothing but
the names below. Anything else at its place belongs to somebody else, and is neither used nor removed.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from ...errors import JobError

RECORDS = "records.jsonl"
SETTINGS = "job.json"
_NAMES = (RECORDS, SETTINGS)


class Scratch:
    """The scratch folder of one output; used by whoever holds the output's lock."""

    def __init__(self, output: Path) -> None:
        self.path = output.with_name(output.name + ".rootlet-tmp")

    @property
    def places(self) -> list[Path]:
        """Every path that may be written here."""
        return [self.path / name for name in _NAMES]

    def check(self) -> bool:
        """Whether a kill has left something here; raises JobError if what is here is not ours."""
        try:
            kind = os.lstat(self.path).st_mode
        except FileNotFoundError:
            return False
        except OSError as error:
            raise JobError(
                f"A job needs the name {str(self.path)!r} for a while: {error.strerror}."
            ) from error
        if not stat.S_ISDIR(kind):
            raise self._foreign("it is not a folder")
        strange = [entry.name for entry in os.scandir(self.path) if not _is_ours(entry)]
        if strange:
            raise self._foreign(f"it holds {sorted(strange)[0]!r}")
        return True

    def clear(self) -> None:
        """Remove what a kill has left; raises JobError if what is here is not ours."""
        if not self.check():
            return
        for place in self.places:
            place.unlink(missing_ok=True)
        self.path.rmdir()

    @contextlib.contextmanager
    def place(self, name: str) -> Iterator[Path]:
        """Where to write the new version of a file and move it away from; nothing is left in the end."""
        self.clear()
        self.path.mkdir()
        try:
            yield self.path / name
        finally:
            self.clear()

    def _foreign(self, why: str) -> JobError:
        return JobError(
            f"A job needs the name {str(self.path)!r} for a while, but what is there was not made by a job: "
            f"{why}. Move it away or choose another output."
        )


def _is_ours(entry: os.DirEntry[str]) -> bool:
    return entry.name in _NAMES and entry.is_file(follow_symlinks=False)
