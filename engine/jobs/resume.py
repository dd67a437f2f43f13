"""What is done, what is missing, and what no longer fits: the input and the output compared.

Per line only digests are held while comparing: 25 bytes for each input line and for each record,
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
from .causes import ErrorCauses
from .identity import DIGEST_BYTES, LineIdentity, digest, identify
from .input_file import RawLine, nth_line, read_lines
from .lines import identify_record
from .seal import bears_seal, is_sealed

_CONTENT_BYTES = 8
_MAX_NAMED = 3  # offenders an error message names
_DAMAGED = 255  # mark of a record whose checksum is wrong
_RECORD_HEAD = b'{"id": '  # every record begins so


class DigestTable:
    """Identity (16 bytes) and content (8 bytes) digests of many lines, and a mark (0 to 255) each."""

    def __init__(self) -> None:
        self._identities = bytearray()
        self._contents = bytearray()
        self._marks = bytearray()

    def __len__(self) -> int:
        return len(self._marks)

    def add(self, identity: bytes, content: bytes, mark: int) -> None:
        """Append one line."""
        self._identities += identity
        self._contents += content[:_CONTENT_BYTES]
        self._marks.append(mark)

    @property
    def identities(self) -> np.ndarray:
        """[len] fixed-width byte strings; a view."""
        return np.frombuffer(self._identities, dtype=f"S{DIGEST_BYTES}")

    @property
    def contents(self) -> np.ndarray:
        """[len] little-endian uint64; a view."""
        return np.frombuffer(self._contents, dtype="<u8")

    @property
    def marks(self) -> np.ndarray:
        """[len] uint8; a view."""
        return np.frombuffer(self._marks, dtype=np.uint8)


class RecordTable(DigestTable):
    """The records of an output. Mark 0: an answer, 255: damaged, else an error: ``codes[mark - 1]``."""

    def __init__(self) -> None:
        super().__init__()
        self.codes: list[str] = []

    def add_record(self, data: bytes) -> None:
        """Append one record; raises ValueError saying why it is none."""
        record = identify_record(data)
        mark = 0
        if record.error_code is not None:
            if record.error_code not in self.codes:
                self.codes.append(record.error_code if len(self.codes) < _DAMAGED - 2 else "other")
            mark = 1 + min(self.codes.index(record.error_code), _DAMAGED - 2)
        self.add(record.identity, record.content, mark)

    def add_damaged(self) -> None:
        """Append what was a record."""
        self.add(bytes(DIGEST_BYTES), bytes(_CONTENT_BYTES), _DAMAGED)


@dataclass(frozen=True)
class Comparison:
    """Outcome of comparing input and output.

    Attributes:
        done: [input lines] bool, by 0-based line number; blank lines count as done.
        contents: [input lines] uint64, the content digests' first 8 bytes.
        total: records wanted (input lines that are not blank).
        keep: [output records] bool, or None if every record stays.
        causes: the error records among those that stay.
        damaged: [.] 0-based numbers of the records that were found damaged.
    """

    done: np.ndarray
    contents: np.ndarray
    total: int
    keep: np.ndarray | None
    causes: ErrorCauses
    damaged: np.ndarray

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


def scan_records(records: Iterable[bytes], torn: bytes, path: Path, *, sealed: bool) -> RecordTable:
    """Read every record of an output file; ``torn`` is the beginning of what stands behind the last.

    With ``sealed`` a line whose checksum is wrong is a damaged record, as long as something shows that the
    file came from a job. Raises JobError at the first line that no job has written.
    """
    table = RecordTable()
    is_output, first_damaged = False, None
    for number, data in enumerate(records):
        if sealed and not is_sealed(data):
            is_output = is_output or bears_seal(data)
            first_damaged = number if first_damaged is None else first_damaged
            table.add_damaged()
            continue
        is_output = True
        try:
            table.add_record(data)
        except (ValueError, RecursionError) as error:
            raise _no_record(path, number, str(error)) from error
    if first_damaged is not None and not is_output:
        raise _no_record(path, first_damaged, "it has no checksum")
    if not len(table) and not torn.startswith(_RECORD_HEAD[: len(torn)]):
        raise _no_record(path, 0, "it does not begin like one")
    return table


def scan_input(path: Path, tick: Callable[[int], None] | None = None) -> DigestTable:
    """Read every line of an input file (mark 1: it is blank). ``tick(n)`` is told of every n-th line."""
    table = DigestTable()
    for line in read_lines(path):
        identity, content, blank = _fingerprint(line)
        table.add(identity.identity, content, blank)
        if tick is not None:
            tick(len(table))
    return table


def compare(
    inputs: DigestTable,
    records: RecordTable,
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
    done = inputs.marks.astype(np.bool_)
    total = len(inputs) - int(done.sum())
    whole = records.marks != _DAMAGED
    if not len(inputs):
        line, found = np.zeros(len(records), dtype=np.intp), np.zeros(len(records), dtype=np.bool_)
        same = found
    else:
        place = np.minimum(np.searchsorted(ordered, records.identities), len(ordered) - 1)
        line = order[place]
        found = whole & (ordered[place] == records.identities)
        same = found & (inputs.contents[line] == records.contents)
    if not redo_changed:
        _refuse_changes(whole, found, same, line, input_path, output_path)
    keep = same & (records.marks == 0) if retry_errors else same
    kept_lines = line[keep]
    if len(np.unique(kept_lines)) < len(kept_lines):
        raise JobError(
            f"The output {str(output_path)!r} answers some lines twice; it was not written by one job. "
            "Move it away or start over with overwrite."
        )
    done[kept_lines] = True
    causes = ErrorCauses()
    for number, code in enumerate(records.codes):
        lines = line[keep & (records.marks == 1 + number)]
        if len(lines):
            causes.add(code, [int(n) + 1 for n in lines])
    damaged = np.flatnonzero(~whole)
    return Comparison(done, inputs.contents.copy(), total, None if keep.all() else keep, causes, damaged)


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


def _no_record(path: Path, number: int, why: str) -> JobError:
    return JobError(
        f"Line {number + 1} of the output {str(path)!r} is no record of a job: {why}. "
        "Move the file away, cut it off before that line, or start over with overwrite."
    )


def _refuse_changes(
    whole: np.ndarray,
    found: np.ndarray,
    same: np.ndarray,
    line: np.ndarray,
    input_path: Path,
    output_path: Path,
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
    gone = np.flatnonzero(whole & ~found)
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
