"""The owner thread: the only one that touches scheduler, pools and device objects once it runs.

Callers post commands and wait elsewhere. The thread holds the core, never the :class:`Engine`, so that an
engine nobody refers to any more can be collected and its resources freed.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeVar

from ..errors import EngineClosedError, EngineFailedError

if TYPE_CHECKING:
    from .core import EngineCore

logger = logging.getLogger("rootlet.engine")
T = TypeVar("T")


class EngineLoop:
    """Runs an :class:`EngineCore` on one daemon thread, started by the first command.

    ``release`` frees what the core uses; it runs exactly once, on the owner thread (or in ``close`` when
    the thread never started), after the last step.
    """

    def __init__(self, core: EngineCore, release: Callable[[], None], *, by_hand: bool = False) -> None:
        self.by_hand = by_hand
        self._core: EngineCore | None = core
        self._release: Callable[[], None] | None = release
        self._commands: deque[tuple[Callable[[EngineCore], None], Callable[[BaseException], None]]] = deque()
        self._condition = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._failure: BaseException | None = None
        self._pid = os.getpid()

    @property
    def is_closed(self) -> bool:
        """True after close, or after a step failed."""
        return self._closing

    def post(self, command: Callable[[EngineCore], None], refuse: Callable[[BaseException], None]) -> None:
        """Have ``command(core)`` run between two steps; commands run in the order they were posted.

        ``refuse(error)`` is called instead when the engine ends first. Raises EngineClosedError or
        EngineFailedError when it has ended already, RuntimeError in a forked child, whose copy of the thread
        does not exist.
        """
        with self._condition:
            self._check_open()
            self._commands.append((command, refuse))
            if self._thread is None and not self.by_hand:
                self._thread = threading.Thread(target=self._run, name="rootlet-engine", daemon=True)
                self._thread.start()
            self._condition.notify()

    def call(self, command: Callable[[EngineCore], T]) -> T:
        """Run ``command(core)`` between two steps and return what it returns (or raise what it raises)."""
        outcome: Future[T] = Future()

        def run(core: EngineCore) -> None:
            try:
                outcome.set_result(command(core))
            except BaseException as error:  # the caller's to handle, whatever it is
                outcome.set_exception(error)

        self.post(run, outcome.set_exception)
        if self.by_hand:
            self._run_commands()
        return outcome.result()

    def step(self) -> bool:
        """Run pending commands and one step in the calling thread. Returns whether there is more to do.

        Only for engines built to be driven by hand: raises RuntimeError for one with a thread of its own. A
        step that raises (Ctrl-C included: it may strike anywhere) ends the engine.
        """
        with self._condition:
            self._check_open()
        if not self.by_hand:
            raise RuntimeError(
                "This engine steps on its own thread. Build it with step_by_hand=True to call step()."
            )
        self._run_commands()
        self._core.wait_for_grammars()
        try:
            return self._core.step() if self._core.has_work else False
        except BaseException as failure:
            self._failure = failure
            self._shut_down(self._ended())
            raise

    def wake(self) -> None:
        """Have the thread look again whether there is work: a grammar was compiled."""
        with self._condition:
            self._condition.notify()

    def close(self) -> None:
        """End the thread after the current step, wake every waiter with an error, free everything."""
        with self._condition:
            self._closing = True
            self._condition.notify()
            thread = self._thread
        if thread is None:
            self._shut_down(EngineClosedError("The engine was closed."))
        elif thread is not threading.current_thread() and os.getpid() == self._pid:
            thread.join()

    # ---- the owner thread --------------------------------------------------------------------------

    def _run(self) -> None:
        error: BaseException = EngineClosedError("The engine was closed.")
        try:
            while self._wait_for_work():
                self._run_commands()
                if self._core.has_work:
                    self._core.step()
        except BaseException as failure:  # whatever it was, nobody may be left waiting
            logger.exception("A step of the engine failed; the engine is closed")
            self._failure = failure
            error = self._ended()
        self._shut_down(error)

    def _wait_for_work(self) -> bool:
        with self._condition:
            while not (self._closing or self._commands or self._core.has_work):
                self._condition.wait()
            return not self._closing

    def _run_commands(self) -> None:
        while True:
            with self._condition:
                if not self._commands:
                    return
                command, _ = self._commands.popleft()
            command(self._core)

    def _shut_down(self, error: BaseException) -> None:
        with self._condition:
            self._closing = True
            commands, self._commands = self._commands, deque()
            core, self._core = self._core, None
        if core is None:
            return
        core.fail_all(error)
        for _, refuse in commands:
            refuse(error)
        del core
        release, self._release = self._release, None
        release()

    def _ended(self) -> EngineClosedError | EngineFailedError:
        if self._failure is None:
            return EngineClosedError("The engine was closed.")
        error = EngineFailedError(f"A step of the engine failed: {self._failure!r}. Build a new engine.")
        error.__cause__ = self._failure
        return error

    def _check_open(self) -> None:
        if os.getpid() != self._pid:
            raise RuntimeError(
                "The engine was built before this process was forked and cannot be used in the child:"
                " build an engine in the process that uses it."
            )
        if self._closing:
            raise self._ended()
