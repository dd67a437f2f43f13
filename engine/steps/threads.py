"""The threads of an engine's steps on a CPU, and a watch on whether they get the cores that they need."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ...kernels.threads import Team

logger = logging.getLogger("rootlet.engine")

# Seconds of steps that are judged together.
WINDOW = 0.5
# Part of its steps' time that a thread may wait for a core before the user is told.
STARVED = 2 / 3
# Part of the time that threads of this process may wait for cores before torch's loops run on one: OpenMP's
# threads wait for each other by spinning, and one that was put aside holds all of them up.
CROWDED = 0.25
LONGEST_PAUSE = 32  # windows


class StepThreads:
    """Has steps computed by a team, and tells once, by a warning, when they mostly wait for cores.

    Args:
        team: belongs to the engine and ends with :meth:`close`.
        own_delay: seconds that the calling thread has waited for a core so far, None where nobody counts.
        all_delays: the sum of those of all threads of this process.
    """

    def __init__(
        self,
        team: Team,
        own_delay: Callable[[], float | None] | None = None,
        all_delays: Callable[[], float | None] | None = None,
    ) -> None:
        self._team = team
        self._own_delay = own_delay or _own_delay
        self._all_delays = all_delays or _all_delays
        self._torch_threads = team.torch_threads
        self._pause = self._windows_left = 0
        self._warned = False
        self._elapsed = 0.0
        self._thread = 0
        self._began = self._lost = self._crowd = 0.0

    @contextmanager
    def step(self) -> Iterator[None]:
        """Compute with the team while the context lasts, and count the time."""
        start = time.perf_counter()
        if self._thread != threading.get_ident():
            self._begin_window(start)
        with self._team.bound():
            yield
        now = time.perf_counter()
        self._elapsed += now - start
        if self._elapsed >= WINDOW:
            self._judge(now)
            self._begin_window(now)

    def close(self) -> None:
        """End the team's threads."""
        self._team.close()

    def _begin_window(self, now: float) -> None:
        self._thread = threading.get_ident()
        self._elapsed, self._began = 0.0, now
        self._lost = self._lost_so_far()
        self._crowd = self._crowd_so_far()

    def _lost_so_far(self) -> float:
        return (self._own_delay() or 0.0) + self._team.stalled

    def _crowd_so_far(self) -> float:
        return (self._all_delays() or 0.0) if self._torch_threads > 1 else 0.0

    def _judge(self, now: float) -> None:
        lost = self._lost_so_far() - self._lost
        if not self._warned and lost >= STARVED * self._elapsed:
            self._warned = True
            logger.warning(
                "Steps of this engine took %.1f s, and for %.1f s of that its threads waited for a core that"
                " other programs or threads keep busy. Leave cores to them: num_threads (now %d; 1 suffers"
                " least), or give this process cores of its own.",
                self._elapsed,
                lost,
                self._team.num_threads,
            )
        if self._torch_threads > 1:
            self._limit_torch(self._crowd_so_far() - self._crowd >= CROWDED * (now - self._began))

    def _limit_torch(self, crowded: bool) -> None:
        """One thread for torch's loops while cores are shared; a try with all after ever longer pauses."""
        if self._windows_left > 0:
            self._windows_left -= 1
        elif crowded:
            self._pause = min(2 * self._pause or 1, LONGEST_PAUSE)
            self._windows_left = self._pause
        else:
            self._pause = 0
        self._team.torch_threads = 1 if self._windows_left else self._torch_threads


def _own_delay() -> float | None:
    return _delay(Path("/proc/thread-self/schedstat"))


def _all_delays() -> float | None:
    delays = [_delay(task / "schedstat") for task in Path("/proc/self/task").glob("*")]
    return sum(delay for delay in delays if delay is not None)


def _delay(schedstat: Path) -> float | None:
    """Seconds that a thread was ready to run and waited for a core, as Linux counts them."""
    try:
        return int(schedstat.read_text().split()[1]) * 1e-9
    except (OSError, ValueError, IndexError):  # another system, a thread that has just ended
        return None
