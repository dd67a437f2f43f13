"""The caller's end of a request: wait for it, watch it, abort it. Safe to use from any thread."""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import TYPE_CHECKING, cast

from ...errors import InvalidRequestError, RootletError, TokenizerError, short
from ..host.code import call_host
from . import streams
from .readable import Owner

if TYPE_CHECKING:
    from .growing import GrowingOutput
    from .outputs import DocumentedOutput, RequestOutput


class RequestHandle:
    """One submitted request, made by :meth:`rootlet.Engine.submit`.

    ``result()`` waits for the end; iterating yields cumulative :class:`RequestOutput` snapshots, the last
    one final. ``await handle`` and ``async for`` do the same from a running event loop. A reader slower than
    the engine skips snapshots, never text; one that leaves early aborts the request.

    Until the request has ended, whatever waits raises EngineThreadError in callbacks and logit processors,
    which run on the engine's own thread; and every method raises EngineForkedError in a forked child.
    """

    def __init__(self, rid: str, owner: Owner, *, is_streamed: bool = False) -> None:
        self.rid = rid
        self.is_streamed = is_streamed
        self._owner = owner
        # Reentrant: a garbage collection inside may drop a stream, which stops watching.
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._final: DocumentedOutput | None = None
        self._latest: DocumentedOutput | None = None  # of those that somebody looked at
        self._growing: GrowingOutput | None = None  # from when it is with the engine until it ends
        self._looking = threading.RLock()  # the engine's thread never takes it
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
        self.check_wait()
        pump = self._owner.pump
        if pump is not None:
            until = None if timeout is None else time.monotonic() + timeout
            while not self.done() and (until is None or time.monotonic() < until):
                pump()
            timeout = 0
        if not self._ended.wait(timeout):
            raise TimeoutError(f"Request {self.rid} did not finish within {timeout} s; it is still running.")
        return self.final()

    def check_wait(self) -> None:
        """Raise EngineThreadError or EngineForkedError if waiting for the end would never end."""
        if not self.done():
            self._owner.check_wait()

    def latest(self) -> RequestOutput | None:
        """The newest snapshot, None before the first. Raises the error that ended the request."""
        output = self._final
        if not self.done():
            self.fresh()
            output = self._latest
        self._check()
        # an engine that embeds hands out no handles, and its calls read what they asked for
        return cast("RequestOutput | None", output)

    def fresh(self) -> RequestOutput | None:
        """A snapshot that shows what none has shown; None if there is no news, or it has ended.

        What cannot be written as text ends the request, and is raised here and from then on.
        """
        growing = self._growing
        if growing is None:
            return None
        with self._looking:
            if self._error is not None:
                self._check()
            try:
                output = growing.look()
            except TokenizerError as error:
                self._error = error
                self._owner.abort(self.rid)
                raise
            if output is not None:
                self._latest = output
            return output

    def _check(self) -> None:
        """Raise the error that ended the request, if one did."""
        error = self._error
        if error is None:
            return
        if isinstance(error, RootletError):  # several threads may raise it: give each its own traceback
            raise type(error)(*error.args) from error.__cause__
        raise error

    def final(self) -> RequestOutput:
        """The output of a request that has ended; raises the error that ended it."""
        output = self.latest()
        assert output is not None
        return output

    def abort(self) -> None:
        """Ask the engine to end the request now; ``result`` then returns what there was, reason ``abort``."""
        if not self.done():
            self._owner.abort(self.rid)

    def add_done_callback(self, callback: Callable[[RequestHandle], None]) -> None:
        """Call ``callback(handle)`` when done: on the engine's thread (be quick), or now if done already.

        On the engine's thread the callback may submit, abort and close, and whatever it raises is logged.
        Raises InvalidRequestError for what cannot be called, and for coroutine functions, which nobody would
        await: pass a function that calls ``loop.call_soon_threadsafe``.
        """
        if not callable(callback) or inspect.iscoroutinefunction(callback):
            raise InvalidRequestError(
                f"A done callback must be a plain function of the handle, got {short(callback)}. In an event"
                " loop `await handle`, or pass a function that calls loop.call_soon_threadsafe(...)."
            )
        if not self.done():
            if self._owner.is_forked:
                self.check_wait()
            with self._lock:
                if not self.done():
                    self._done_callbacks.append(callback)
                    return
        callback(self)

    @property
    def has_news(self) -> bool:
        """Whether the request goes on and has tokens that no snapshot has shown."""
        growing = self._growing
        return growing is not None and growing.has_news

    def watch(self, watcher: Callable[[RequestHandle], None]) -> None:
        """Call ``watcher(handle)`` on the engine's thread when the request has ended."""
        with self._lock:
            self._watchers.append(watcher)

    def unwatch(self, watcher: Callable[[RequestHandle], None]) -> None:
        """Undo :meth:`watch`."""
        with self._lock:
            self._watchers.remove(watcher)

    def __iter__(self) -> Iterator[RequestOutput]:
        return streams.Stream([self], self._owner)

    def __aiter__(self) -> AsyncIterator[RequestOutput]:
        return streams.AsyncStream([self], self._owner)

    def __await__(self) -> Generator[object, None, RequestOutput]:
        return streams.wait_async(self, self._owner).__await__()

    # ---- the engine's side -------------------------------------------------------------------------

    def grow(self, growing: GrowingOutput) -> None:
        """Look there until the end."""
        self._growing = growing

    def deliver(self, output: DocumentedOutput) -> None:
        """Take the final output."""
        self._settle(output, None)

    def fail(self, error: BaseException) -> None:
        """End with an exception."""
        self._settle(self._final, error)

    def _settle(self, output: DocumentedOutput | None, error: BaseException | None) -> None:
        with self._lock:
            if self.done():
                return
            self._final, self._error = output, self._error or error
            self._growing = None
            self._ended.set()
            callbacks, self._done_callbacks = self._done_callbacks, []
            watchers = list(self._watchers)
        for callback in watchers + callbacks:
            call_host(f"A callback of request {self.rid}", callback, self)
