"""What is done, what is missing, and what no longer fits: the input and the output compared.

Per line only digests are held while comparing: 24 bytes for each input line and 25 for each record,
in plain byte arrays. Afterwards 9 bytes per line stay: whether it is done, and 8 bytes of its content
digest, by which the job notices an input that changes under its hands.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...errors import JobError
from .identity import DIGEST_BYTES, LineIdentity, digest, identify
from .input_file import RawLine, nth_line, read_lines
from .lines import RecordIdentity, identify_record

_CONTENT_BYTES = 8
_MAX_NAMED = 3  # offenders an error message names


class DigestTable:
    """Identity (16 bytes) and content (8 bytes) digests of many lines, and a flag each."""

    def __init__(self) -> None:
        self._identities = bytearray()
        self._contents = bytearray()
        self._flags = bytearray()

    def __len__(self) -> int:
        return len(self._flags)

    def add(self, identity: bytes, content: bytes, flag: bool) -> None:
        """Append one line."""
        self._identities += identity
        self._contents += content[:_CONTENT_BYTES]
        self._flags.append(flag)

    @property
    def identities(self) -> np.ndarray:
        """[len] fixed-width byte strings; a view."""
        return np.frombuffer(self._identities, dtype=f"S{DIGEST_BYTES}")

    @property
    def contents(self) -> np.ndarray:
        """[len] little-endian uint64; a view."""
        return np.frombuffer(self._contents, dtype="<u8")

    @property
    def flags(self) -> np.ndarray:
        """[len] bool; a view."""
        return np.frombuffer(self._flags, dtype=np.bool_)


@dataclass(frozen=True)
class Comparison:
    """Outcome of comparing input and output.

    Attributes:
        done: [input lines] bool, by 0-based line number; blank lines count as done.
        contents: [input lines] uint64, the content digests' first 8 bytes.
        total: records wanted (input lines that are not blank).
        keep: [output records] bool, or None if every record stays.
        num_errors: error records among those that stay.
    """

    done: np.ndarray
    contents: np.ndarray
    total: int
    keep: np.ndarray | None
    num_errors: int

    @property
    def num_missing(self) -> int:
        """Lines still to do."""
        return len(self.done) - int(self.done.sum())

    def missing_lines(self, path: Path) -> Iterator[LineIdentity]:
        """Read the input again and yield the lines still to do; raises JobError if it changed meanwhile."""
        num_lines = 0
        for line in itertools.islice(read_lines(path), len(self.done)):
            num_lines += 1
            identity, content, _ = _fingerprint(line)
            if int.from_bytes(content[:_CONTENT_BYTES], "little") != int(self.contents[line.index]):
                raise _changed_meanwhile(path, line.index)
            if not self.done[line.index]:
                yield identity
        if num_lines < len(self.done):
            raise _changed_meanwhile(path, num_lines)


def scan_records(records: Iterable[bytes], path: Path) -> DigestTable:
    """Read every record of an output file (flag: it is an error record).

    Raises JobError at the first line that no job has written.
    """
    table = DigestTable()
    for number, data in enumerate(records):
        try:
            record: RecordIdentity = identify_record(data)
        except (ValueError, RecursionError) as error:
            raise JobError(
                f"Line {number + 1} of the output {str(path)!r} is no record of a job: {error}. "
                "Move the file away, cut it off before that line, or start over with overwrite."
            ) from error
        table.add(record.identity, record.content, record.is_error)
    return table


def scan_input(path: Path, tick: Callable[[int], None] | None = None) -> DigestTable:
    """Read every line of an input file (flag: it is blank). ``tick(n)`` is told of every n-th line."""
    table = DigestTable()
    for line in read_lines(path):
        identity, content, blank = _fingerprint(line)
        table.add(identity.identity, content, blank)
        if tick is not None:
            tick(len(table))
    return table


def compare(
    inputs: DigestTable,
    records: DigestTable,
    *,
    input_path: Path,
    output_path: Path,
    redo_changed: bool,
    retry_errors: bool,
) -> Comparison:
    """Decide what is done.

    Raises JobError if two input lines have the same id, if two records answer the same line, or, without
    ``redo_changed``, if a record's line now says something else or is gone.
    """
    order = np.argsort(inputs.identities, kind="stable")
    ordered = inputs.identities[order]
    _refuse_repeats(ordered, order, input_path)
    done = inputs.flags.copy()
    total = len(inputs) - int(done.sum())
    if not len(records):
        return Comparison(done, inputs.contents.copy(), total, None, 0)
    if not len(inputs):
        line, found = np.zeros(len(records), dtype=np.intp), np.zeros(len(records), dtype=np.bool_)
        same = found
    else:
        place = np.minimum(np.searchsorted(ordered, records.identities), len(ordered) - 1)
        line = order[place]
        found = ordered[place] == records.identities
        same = found & (inputs.contents[line] == records.contents)
    if not redo_changed:
        _refuse_changes(found, same, line, input_path, output_path)
    keep = same & ~records.flags if retry_errors else same
    kept_lines = line[keep]
    if len(np.unique(kept_lines)) < len(kept_lines):
        raise JobError(
            f"The output {str(output_path)!r} answers some lines twice; it was not written by one job. "
            "Move it away or start over with overwrite."
        )
    done[kept_lines] = True
    num_errors = int((records.flags & keep).sum())
    return Comparison(done, inputs.contents.copy(), total, None if keep.all() else keep, num_errors)


def _fingerprint(line: RawLine) -> tuple[LineIdentity, bytes, bool]:
    """Identity and content of a line; a blank line is known by its place, and says nothing."""
    if line.is_blank:
        blank = digest(b"blank")
        place = digest(f"blank #{line.index}".encode())
        return LineIdentity(line.index, None, place, blank, None, None, 0), blank, True
    identity = identify(line)
    return identity, identity.content, False


def _refuse_repeats(ordered: np.ndarray, order: np.ndarray, path: Path) -> None:
    repeats = np.flatnonzero(ordered[1:] == ordered[:-1])
    if not len(repeats):
        return
    pairs = sorted((int(order[i]), int(order[i + 1])) for i in repeats)[:_MAX_NAMED]
    named = ", ".join(f"{_name(path, first)} on lines {first + 1} and {again + 1}" for first, again in pairs)
    raise JobError(
        f"Answers are found by id, so ids must differ, but {len(repeats)} lines of {str(path)!r} repeat one: "
        f"{named}. Give each line its own id, or none."
    )


def _refuse_changes(
    found: np.ndarray, same: np.ndarray, line: np.ndarray, input_path: Path, output_path: Path
) -> None:
    advice = "Restore the input, choose another output, or have those lines redone with on_changed='redo'."
    changed = np.flatnonzero(found & ~same)
    if len(changed):
        numbers = sorted(int(line[i]) for i in changed)[:_MAX_NAMED]
        named = ", ".join(f"{_name(input_path, n)} (line {n + 1})" for n in numbers)
        raise JobError(
            f"The input {str(input_path)!r} says something else than when it was answered in "
            f"{str(output_path)!r}: {len(changed)} answered lines have changed, first {named}. {advice}"
        )
    gone = np.flatnonzero(~found)
    if len(gone):
        first = int(gone[0])
        raise JobError(
            f"The output {str(output_path)!r} has {len(gone)} records whose lines are not in the input "
            f"{str(input_path)!r}, first its line {first + 1}. {advice}"
        )


def _name(path: Path, index: int) -> str:
    """The id a line gives itself, for a message."""
    line_id = identify(RawLine(index, nth_line(path, index))).id
    return "a line without id" if line_id is None else f"id {line_id!r}"


def _changed_meanwhile(path: Path, index: int) -> JobError:
    return JobError(
        f"The input {str(path)!r} changed while the job was running: line {index + 1} is not what it was. "
        "What is finished is kept."
    )
