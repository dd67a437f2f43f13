"""A pause that a caller asked for, and ends."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, get_args

from ..core import OnRunning
from .options import check_choice
from .standstill import Standstill

if TYPE_CHECKING:
    from ..loop import EngineLoop


class Pauses:
    """Whether an engine's callers have paused it. Any thread may call but the engine's own."""

    def __init__(self, loop: EngineLoop) -> None:
        self._loop = loop
        self._turn = threading.Lock()
        self._standstill: Standstill | None = None

    def pause(self, mode: OnRunning) -> int:
        """Stand still until :meth:`resume`; how many requests were aborted."""
        check_choice("mode", mode, get_args(OnRunning))
        self._loop.check_wait()
        self._loop.check_open()
        with self._turn:
            standstill = Standstill(self._loop, mode)
            standstill.__enter__()
            if self._standstill is not None:  # one of the two is enough
                self._standstill.__exit__(None, None, None)
            self._standstill = standstill
            return standstill.num_aborted

    def resume(self) -> None:
        """End the pause, if there is one."""
        self._loop.check_wait()
        self._loop.check_open()
        with self._turn:
            standstill, self._standstill = self._standstill, None
            if standstill is not None:
                standstill.__exit__(None, None, None)
