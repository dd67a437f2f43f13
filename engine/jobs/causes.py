"""Error records by their cause."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

_MAX_LINES = 5


@dataclass(frozen=True)
class ErrorCause:
    """``count`` error records have one code; ``lines``: the first few of their lines, counted from 1."""

    count: int = 0
    lines: tuple[int, ...] = ()

    def with_lines(self, lines: Iterable[int]) -> ErrorCause:
        """This cause with more records."""
        lines = tuple(lines)
        return ErrorCause(self.count + len(lines), tuple(sorted((*self.lines, *lines))[:_MAX_LINES]))

    def __str__(self) -> str:
        more = ", ..." if self.count > len(self.lines) else ""
        return f"{self.count:,} (line{'s' * (self.count > 1)} {', '.join(map(str, self.lines))}{more})"


class ErrorCauses(dict[str, ErrorCause]):
    """Code of an error record -> :class:`ErrorCause`."""

    def add(self, code: str, lines: Iterable[int]) -> None:
        """Count error records of one code, one for each of ``lines`` (counted from 1)."""
        self[code] = self.get(code, ErrorCause()).with_lines(lines)

    @property
    def total(self) -> int:
        """How many error records there are."""
        return sum(cause.count for cause in self.values())

    def most_frequent(self) -> list[tuple[str, ErrorCause]]:
        """The causes, those of most records first."""
        return sorted(self.items(), key=lambda item: (-item[1].count, item[0]))
