"""A time in which the engine takes no steps, while a caller's thread works on what they use."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from typing_extensions import Self

    from ..core import EngineCore, OnRunning
    from ..loop import EngineLoop

T = TypeVar("T")


class Standstill:
    """A block in which no step is under way or begun; requests may be added and wait.

    Raises on entry as :meth:`EngineCore.stop`, and EngineClosedError or EngineFailedError where the engine
    ends before it stands still. Ctrl-C while it waits for requests to end lets them go on.
    """

    def __init__(self, loop: EngineLoop, on_running: OnRunning) -> None:
        self._loop = loop
        self._on_running = on_running
        self.num_aborted = 0

    def __enter__(self) -> Self:
        quiet = threading.Event()
        self.num_aborted = self._loop.call(lambda core: core.stop(self._on_running, quiet.set))
        try:
            while not quiet.is_set():
                if self._loop.by_hand:
                    self._loop.step()
                elif not quiet.wait(1):
                    self._loop.check_open()  # ended meanwhile: nobody will tell
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._loop.is_closed:
            self._loop.call(_go_on)


def stand_still_for(
    loop: EngineLoop, on_running: OnRunning, command: Callable[[EngineCore], T]
) -> tuple[int, T]:
    """Run ``command(core)`` while it stands still, all in one turn of the engine's thread.

    Returns how many requests were aborted, and what the command does. Not for "finish", which takes steps.
    """

    def run(core: EngineCore) -> tuple[int, T]:
        num_aborted = core.stop(on_running)
        try:
            return num_aborted, command(core)
        finally:
            core.go_on()

    return loop.call(run)


def _go_on(core: EngineCore) -> None:
    core.go_on()
