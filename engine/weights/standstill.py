"""A time in which the engine takes no steps, while a caller's thread works on what they use."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self

    from ..core import EngineCore, OnRunning
    from ..loop import EngineLoop


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


def _go_on(core: EngineCore) -> None:
    core.go_on()
