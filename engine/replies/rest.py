"""Readers rest: while one of them works, the engine's thread waits for the interpreter.

That thread gives the interpreter up in every operation of a step and gets it back when the reader sleeps, so
what readers do in a step is added to it. Where steps take a few milliseconds readers rest for a multiple of
what they took, and then find several tokens at once; where steps take longer than that, nobody notices.
Beside a GPU nobody rests: the engine's thread waits for the device, and needs the interpreter for little of
a step.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

SHARE = 6  # so many times what reading took: readers have a seventh of the time
LONGEST = 0.01  # seconds, which no human sees
SHORTEST = 0.0005  # seconds: to sleep and to wake costs more than a shorter rest is worth


class Rest:
    """When somebody may go on reading.

    Args:
        longest: seconds that it lasts at most.
        now: seconds on a clock.
        spent: seconds of CPU time that the calling thread has taken so far.
    """

    def __init__(
        self,
        longest: float = LONGEST,
        now: Callable[[], float] = time.monotonic,
        spent: Callable[[], float] = time.thread_time,
    ) -> None:
        self._longest = longest
        self._now = now
        self._spent = spent
        self._thread = 0
        self._began = self._until = 0.0

    def begin(self) -> None:
        """The calling thread has read, and so has whoever it woke on its thread."""
        if self._thread == threading.get_ident():  # of several that read one stream the last to wake counts
            self._until = self._now() + min(SHARE * (self._spent() - self._began), self._longest)

    def end(self) -> None:
        """The calling thread begins to read."""
        self._thread, self._began = threading.get_ident(), self._spent()

    @property
    def left(self) -> float:
        """Seconds to go on resting, 0.0 if they are not worth it."""
        left = self._until - self._now()
        return left if left > SHORTEST else 0.0
