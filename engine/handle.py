"""The caller's end of a request: wait for it, watch it, abort it. Safe to use from any thread."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import TYPE_CHECKING

from ..errors import RootletError
from . import streams

if TYPE_CHECKING:
    from .outputs import RequestOutput

logger = logging.getLogger("rootlet.engine")


class RequestHandle:
    """One submitted request, made by :meth:`rootlet.Engine.submit`.

    ``result()`` waits for the end; iterating yields cumulative :class:`RequestOutput` snapshots, the last
    one final. ``await handle`` and ``async for`` do the same from a running event loop. A reader slower than
    the engine skips snapshots, never text; one that leaves early aborts the request.
    """

    def __init__(
        self, rid: str, abort: Callable[[str], None], pump: Callable[[], object] | None = None
    ) -> None:
        self.rid = rid
        self._abort = abort
        self._pump = pump  # advances an engine that has no thread of its own
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._latest: RequestOutput | None = None
        self._error: BaseException | None = None
        self._watchers: list[Callable[[RequestHandle], None]] = []
        self._done_callbacks: list[Callable[[RequestHandle], None]] = []

    # ---- the caller's side -------------------------------------------------------------------------

    def done(self) -> bool:
        """True once the final output, or an error, is there."""
        return self._ended.is_set()

    def result(self, timeout: float | None = None) -> RequestOutput:
        """Wait for the final output.

        Raises TimeoutError after ``timeout`` seconds (the request goes on), EngineClosedError when the
        engine was closed first, EngineFailedError when a step raised.
        """
        while self._pump is not None and not self.done():
            self._pump()
        if not self._ended.wait(timeout):
            raise TimeoutError(f"Request {self.rid} did not finish within {timeout} s; it is still running.")
        return self.latest()

    def latest(self) -> RequestOutput | None:
        """The newest snapshot, None before the first. Raises the error that ended the request."""
        error = self._error
        if error is None:
            return self._latest
        if isinstance(error, RootletError):  # several threads may raise it: give each its own traceback
            raise type(error)(*error.args) from error.__cause__
        raise error

    def abort(self) -> None:
        """Ask the engine to end the request now; ``result`` then returns what there was, reason ``abort``."""
        if not self.done():
            self._abort(self.rid)

    def add_done_callback(self, callback: Callable[[RequestHandle], None]) -> None:
        """Call ``callback(handle)`` when done: on the engine's thread (be quick), or now if done already."""
        with self._lock:
            if not self.done():
                self._done_callbacks.append(callback)
                return
        callback(self)

    @contextlib.contextmanager
    def watched(self, watcher: Callable[[RequestHandle], None]) -> Iterator[None]:
        """Within the block, call ``watcher(handle)`` on the engine's thread whenever something is new."""
        with self._lock:
            self._watchers.append(watcher)
        try:
            yield
        finally:
            with self._lock:
                self._watchers.remove(watcher)

    def __iter__(self) -> Iterator[RequestOutput]:
        return streams.iterate([self], self._pump)

    def __aiter__(self) -> AsyncIterator[RequestOutput]:
        return streams.iterate_async([self])

    def __await__(self) -> Generator[object, None, RequestOutput]:
        return streams.wait_async(self).__await__()

    # ---- the engine's side -------------------------------------------------------------------------

    def deliver(self, output: RequestOutput) -> None:
        """Take a snapshot; one with a ``finish_reason`` is final."""
        self._settle(output, None, ended=output.finish_reason is not None)

    def fail(self, error: BaseException) -> None:
        """End with an exception."""
        self._settle(self._latest, error, ended=True)

    def _settle(self, output: RequestOutput | None, error: BaseException | None, *, ended: bool) -> None:
        with self._lock:
            if self.done():
                return
            self._latest, self._error = output, error
            callbacks: list[Callable[[RequestHandle], None]] = []
            if ended:
                self._ended.set()
                callbacks, self._done_callbacks = self._done_callbacks, []
            watchers = list(self._watchers)
        for callback in watchers + callbacks:
            try:
                callback(self)
            except Exception:  # a caller's mistake must not end everybody's engine
                logger.exception("A callback of request %s raised", self.rid)
