"""The owner thread: the only one that touches scheduler, pools and device objects once it runs.

Callers post commands and wait elsewhere. The thread holds the core, never the :class:`Engine`, so that an
engine nobody refers to any more can be collected and its resources freed.

Code of the host runs on the owner thread too: done callbacks, logit processors. There, what only posts works,
and what would have to wait for the thread raises EngineThreadError at once.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeVar

from ..errors import (
    EngineClosedError,
    EngineFailedError,
    EngineForkedError,
    EngineThreadError,
    InvalidRequestError,
)
from .host.code import call_host, log_exception
from .replies.bells import Bells

if TYPE_CHECKING:
    from .core import EngineCore

T = TypeVar("T")


class EngineLoop:
    """Runs an :class:`EngineCore` on one daemon thread, started by the first command.

    ``release`` frees what the core uses; it runs exactly once, on the owner thread (or in ``close`` when
    the thread never started), after the last step. ``by_hand``: there is no thread; whoever calls
    :meth:`step` or :meth:`call` is the owner meanwhile, inside a block of ``shielded``. ``readers_rest``: who
    reads streams leaves the interpreter to the engine for most of the time.
    """

    def __init__(
        self,
        core: EngineCore,
        release: Callable[[], None],
        *,
        by_hand: bool = False,
        shielded: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
        readers_rest: bool = True,
    ) -> None:
        self.by_hand = by_hand
        self._shielded = shielded
        self._core: EngineCore | None = core
        self._release = release
        self._commands: deque[tuple[Callable[[EngineCore], None], Callable[[BaseException], None]]] = deque()
        self._condition = threading.Condition()
        self._thread: threading.Thread | None = None
        self._owner: int | None = None  # the thread that is inside the core, or may be
        self._closing = False
        self._failure: BaseException | None = None
        self._pid = os.getpid()
        self._bells = Bells() if readers_rest else Bells(longest_rest=0.0)

    @property
    def bells(self) -> Bells:
        """What wakes readers; held while the core works."""
        return self._bells

    @property
    def is_closed(self) -> bool:
        """True after close, or after a step failed."""
        return self._closing

    @property
    def is_forked(self) -> bool:
        """True in a forked child: the thread is not there, and locks may be held by it for ever."""
        return os.getpid() != self._pid

    @property
    def pump(self) -> Callable[[], object] | None:
        """What a waiting caller calls again and again to get on; None if a thread of ours does the work."""
        return self._step_for_waiter if self.by_hand else None

    def check_open(self) -> None:
        """Raise EngineClosedError or EngineFailedError after the end, EngineForkedError in a forked child."""
        if self.is_forked:
            raise EngineForkedError(
                "The engine was built before this process was forked and cannot be used in the child:"
                " build an engine in the process that uses it."
            )
        if self._closing:
            raise self._ended()

    def check_wait(self) -> None:
        """Raise EngineThreadError or EngineForkedError where waiting for a request would never end."""
        if self.is_forked:
            self.check_open()
        if threading.get_ident() == self._owner:
            raise EngineThreadError(
                "A done callback or logit processor cannot wait on the engine's own thread, which would do"
                " the work. Use submit() with add_done_callback(), or hand the work to a thread of yours."
            )

    def post(self, command: Callable[[EngineCore], None], refuse: Callable[[BaseException], None]) -> None:
        """Have ``command(core)`` run between two steps; commands run in the order they were posted.

        ``refuse(error)`` is called instead when the engine ends first. Raises as :meth:`check_open`.
        """
        self.check_open()
        with self._condition:
            self.check_open()
            self._commands.append((command, refuse))
            if self._thread is None and not self.by_hand:
                # A daemon that is stopped in the middle of a step aborts the process: so exit waits for it.
                atexit.register(self.close)
                self._thread = threading.Thread(target=self._run, name="rootlet-engine", daemon=True)
                self._thread.start()
            self._condition.notify()

    def call(self, command: Callable[[EngineCore], T]) -> T:
        """Run ``command(core)`` between two steps and return what it returns (or raise what it raises)."""
        self.check_wait()
        outcome: Future[T] = Future()

        def run(core: EngineCore) -> None:
            try:
                outcome.set_result(command(core))
            except BaseException as error:  # the caller's to handle, whatever it is
                outcome.set_exception(error)

        self.post(run, outcome.set_exception)
        if self.by_hand:
            with self._driving():
                self._run_commands()
        return outcome.result()

    def abort(self, rid: str | None) -> None:
        """Have a request ended with what it has, if it has not ended; None: every one there is by then.

        Raises EngineForkedError in a forked child.
        """

        def end(core: EngineCore) -> None:
            if rid is None:
                core.abort_all()
            else:
                core.abort(rid)

        if self.is_forked:
            self.check_open()
        with contextlib.suppress(EngineClosedError, EngineFailedError):  # it ended with the engine
            self.post(end, lambda error: None)  # noqa: ARG005

    def step(self) -> bool:
        """Run pending commands and one step in the calling thread. Returns whether there is more to do.

        Only for engines built to be driven by hand: raises RuntimeError for one with a thread of its own. A
        step that raises (Ctrl-C included: it may strike anywhere) ends the engine.
        """
        self.check_wait()
        self.check_open()
        if not self.by_hand:
            raise RuntimeError(
                "This engine steps on its own thread. Build it with step_by_hand=True to call step()."
            )
        with self._driving():
            self._run_commands()
            core = self._owned()
            core.wait_for_grammars()
            more = core.step() if core.has_work else False
            self._bells.step()
        return more and not self._closing

    def _step_for_waiter(self) -> None:
        """A step for somebody who waits for a request. Raises InvalidRequestError where that never ends."""
        if not self.step() and self._core is not None and self._core.is_stopped:
            raise InvalidRequestError(
                "The engine is paused, and nobody else drives it: call resume() before you wait for requests."
            )

    def wake(self) -> None:
        """Have the thread look again whether there is work: a grammar was compiled."""
        with self._condition:
            self._condition.notify()

    def close(self) -> None:
        """End the thread after the current step, wake every waiter with an error, free everything.

        On the owner thread it returns at once, and the rest follows after the step. In a forked child there
        is nothing to end.
        """
        if self.is_forked:
            return
        with self._condition:
            self._closing = True
            self._condition.notify()
            thread = self._thread
        if threading.get_ident() == self._owner:
            return
        if thread is None:
            self._shut_down(EngineClosedError("The engine was closed."))
        else:
            thread.join()

    # ---- the owner thread --------------------------------------------------------------------------

    def _run(self) -> None:
        self._owner = threading.get_ident()
        error: BaseException = EngineClosedError("The engine was closed.")
        try:
            while self._wait_for_work():
                with self._bells.held():
                    self._run_commands()
                    if self._owned().has_work:
                        self._owned().step()
                        self._bells.step()
                    elif self._owned().is_getting_ready:
                        self._owned().get_ready()
        except BaseException as failure:  # whatever it was, nobody may be left waiting
            log_exception("A step of the engine failed; the engine is closed")
            self._failure = failure
            error = self._ended()
        try:
            self._shut_down(error)
        finally:
            self._owner = None
            atexit.unregister(self.close)

    def _owned(self) -> EngineCore:
        """The core, for the thread that owns it: nobody lets go of it meanwhile."""
        assert self._core is not None
        return self._core

    def _wait_for_work(self) -> bool:
        with self._condition:
            core = self._owned()
            while not (self._closing or self._commands or core.has_work or core.is_getting_ready):
                self._condition.wait()
            return not self._closing

    @contextlib.contextmanager
    def _driving(self) -> Iterator[None]:
        """Within the block the calling thread is the owner; what ends it early ends the engine."""
        self._owner = threading.get_ident()
        try:
            with self._shielded(), self._bells.held():
                yield
        except BaseException as failure:
            self._failure = failure
            self._shut_down(self._ended())
            raise
        finally:
            self._owner = None
            if self._closing:  # by a callback
                self._shut_down(EngineClosedError("The engine was closed."))

    def _run_commands(self) -> None:
        while True:
            with self._condition:
                if not self._commands:
                    return
                command, _ = self._commands.popleft()
            command(self._owned())

    def _shut_down(self, error: BaseException) -> None:
        with self._condition:
            self._closing = True
            commands, self._commands = self._commands, deque()
            core, self._core = self._core, None
        if core is None:
            return
        try:
            core.fail_all(error)
            for _, refuse in commands:
                call_host("A waiting call", refuse, error)
        finally:
            del core
            release, self._release = self._release, _nothing
            release()

    def _ended(self) -> EngineClosedError | EngineFailedError:
        if self._failure is None:
            return EngineClosedError("The engine was closed.")
        error = EngineFailedError(f"A step of the engine failed: {self._failure!r}. Build a new engine.")
        error.__cause__ = self._failure
        return error


def _nothing() -> None:
    """What is left to release in the end."""
