"""Looking an output over without its input or a model."""

from __future__ import annotations

from pathlib import Path

from ...errors import JobError
from .paths import check_input_path
from .resume import RecordTable
from .seal import is_sealed


def damaged_lines(output: str | Path) -> list[int]:
    """The lines of a job's output, counted from 1, that are not as the job wrote them.

    A last line without its end is one of them. Running the same job again answers anew what they answered.
    Raises JobError if ``output`` is no file.
    """
    path = check_input_path(output, "output")
    damaged = []
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n") or not _is_record(line[:-1]):
                    damaged.append(number)
    except OSError as error:
        raise JobError(f"The output {str(path)!r} cannot be read: {error}.") from error
    return damaged


def _is_record(line: bytes) -> bool:
    try:
        RecordTable().add_record(line)
    except (ValueError, RecursionError):
        return False
    return is_sealed(line)
