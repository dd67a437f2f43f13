"""What compiling one constraint may cost: whoever sends it decides how long that takes, so it is counted.

Every loop over something that a constraint says spends. What is spent decides, not what is left to do: a
constraint is refused the same way on every machine by its steps, and by its CPU time only where a step took
unusually long. Between two steps a compilation can be cancelled, and lets others have the processor.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NoReturn

from ..errors import GrammarError

Ranges = tuple[tuple[int, int], ...]

DEFAULT_SECONDS = 3.0
_STEPS_PER_SECOND = 500_000
_BYTES_PER_SECOND = 32 << 20
_STEPS_BETWEEN_CHECKS = 128  # some 200 microseconds

OPTION = "grammar_compile_budget"


class Budget:
    """Steps, bytes and seconds of CPU time for one constraint. One thread spends; any may cancel.

    Attributes:
        steps, size: spent so far.
        breadth: places of a character in what was written, as shares of printable ASCII.

    Args:
        seconds: of CPU time of the thread that makes the budget; steps and bytes are in proportion.
        between: called every few hundred microseconds of work with the CPU seconds spent so far; it may wait.
    """

    def __init__(
        self, seconds: float = DEFAULT_SECONDS, between: Callable[[float], None] | None = None
    ) -> None:
        self.steps = 0
        self.size = 0
        self.breadth = 0.0
        self._seconds = seconds
        self._between = between
        self._most_steps = int(seconds * _STEPS_PER_SECOND)
        self._most_size = int(seconds * _BYTES_PER_SECOND)
        self._next_check = 0
        self._began: float | None = None
        self._is_cancelled = False
        self._places: dict[int, tuple[object, str]] = {}

    def locate(self, node: object, place: str) -> None:
        """Note where a part of the constraint stands, for messages."""
        self._places[id(node)] = node, place  # the node is kept, so its id stays its own

    def place(self, node: object) -> str | None:
        """Where a part stands, if that was noted."""
        found = self._places.get(id(node))
        return None if found is None else found[1]

    @property
    def is_cancelled(self) -> bool:
        """Whether nobody wants the result any more."""
        return self._is_cancelled

    def widen(self, chars: Ranges) -> None:
        """Note a place of the grammar where any of ``chars`` may stand; ``breadth`` adds up their shares."""
        self.breadth += sum(max(0, min(high, 126) - max(low, 32) + 1) for low, high in chars) / 95

    def cancel(self) -> None:
        """Have the next :meth:`spend` raise."""
        self._is_cancelled = True

    def spend(self, steps: int, what: str, size: int = 0) -> None:
        """Note work on ``what``: steps of about a microsecond, and bytes that stay.

        Raises GrammarError, which names ``what``, if that is more than there is or if it was cancelled.
        """
        self.steps += steps
        self.size += size
        if self.steps >= self._next_check or self.size > self._most_size:
            self._check(what)

    def _check(self, what: str) -> None:
        if self._is_cancelled:
            raise GrammarError("The constraint is not compiled: no request waits for it any more.")
        now = time.thread_time()
        if self._began is None:
            self._began = now
        if self.steps > self._most_steps:
            self._refuse(what, f"more than {self._most_steps} steps")
        if self.size > self._most_size:
            self._refuse(what, f"more than {self._most_size >> 20} MiB")
        if now - self._began > self._seconds:
            self._refuse(what, f"more than {self._seconds:g} s")
        self._next_check = min(self.steps + _STEPS_BETWEEN_CHECKS, self._most_steps + 1)
        if self._between is not None:
            self._between(now - self._began)
            if self._is_cancelled:
                self._check(what)

    def _refuse(self, what: str, cost: str) -> NoReturn:
        raise GrammarError(
            f"{what} is too large: compiling it takes {cost}. Make it smaller (fewer or shorter options,"
            f" smaller repetition counts), or raise the engine option {OPTION} ({self._seconds:g} s)"
        )


def shortened(text: str, most: int = 60) -> str:
    """A text for a message."""
    return repr(text if len(text) <= most else f"{text[:most]}...")
