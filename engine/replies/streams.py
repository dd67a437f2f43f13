"""Reading one or many handles as they advance, from threads or from an event loop.

A stream owns its requests from the beginning: whatever becomes of it, none runs on for nobody.
The engine's thread only marks a handle as new and has the reader's bell rung after the step; a reader that
is busy finds one mark per handle, however many tokens have passed: a slow one costs neither time nor memory.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

from .bells import LoopBell
from .outputs import RequestOutput
from .readable import Owner, Readable


class _News:
    """What is new of some handles, in order of their first unread change. Any thread may read."""

    def __init__(
        self, handles: Sequence[Readable], owner: Owner, wake: Callable[[], None] | None = None
    ) -> None:
        self._condition = threading.Condition()
        self._changed: dict[Readable, None] = dict.fromkeys(handles)  # what is there already counts
        self._wake = wake or (lambda: owner.bells.ring(self))
        self._owner = owner
        self._handles = list(handles)
        self._open = set(handles)
        self._check_process()
        for handle in handles:
            handle.watch(self.mark)

    @property
    def all_ended(self) -> bool:
        """True once every handle's final output was read, or nobody reads any more."""
        return not self._open

    def mark(self, handle: Readable) -> None:
        """Called on the engine's thread."""
        with self._condition:
            self._changed[handle] = None
        self._wake()

    def ring(self) -> None:
        """Wake the threads that wait; as :class:`.bells.Bell`."""
        with self._condition:
            self._condition.notify_all()

    def take(self) -> RequestOutput | None:
        """What is new of one handle, None if nothing is; its final output comes once."""
        self._check_process()
        with self._condition:
            while self._changed:
                handle = next(iter(self._changed))
                del self._changed[handle]
                if handle not in self._open:  # marked once more for the end that was already seen
                    continue
                ended = handle.done()  # before reading: a later snapshot can only be newer
                output = handle.latest()
                if ended:
                    self._open.remove(handle)
                if output is not None and (ended or output.finish_reason is None):
                    return output  # a final one that came between the two reads has its own mark
            return None

    def wait(self) -> None:
        """Block until there may be something to take."""
        with self._condition:
            while not self._changed and self._open:
                self._condition.wait()

    def _check_process(self) -> None:
        """Raise EngineForkedError in a forked child, before a lock is taken that may be held for ever."""
        if self._owner.is_forked:
            self._owner.check_wait()

    def end(self) -> None:
        """Nobody reads any more: abort what is unfinished. In a forked child it is the parent's."""
        if self._owner.is_forked:
            return
        with self._condition:
            handles, self._handles = self._handles, []
            self._open.clear()
        self._wake()
        for handle in handles:
            handle.unwatch(self.mark)
            handle.abort()


class Stream(Iterator[RequestOutput]):
    """Snapshots of one or more requests, until every one has ended.

    It owns them: closed, dropped or left by an exception, begun or not, it aborts those that are unfinished.
    """

    def __init__(self, handles: Sequence[Readable], owner: Owner) -> None:
        self._owner = owner
        self._news = _News(handles, owner)
        weakref.finalize(self, self._news.end).atexit = False

    def __next__(self) -> RequestOutput:
        news = self._news
        try:
            while True:
                output = news.take()
                if output is not None:
                    return output
                if news.all_ended:
                    break
                self._owner.check_wait()
                (self._owner.pump or news.wait)()
        except BaseException:
            self.close()
            raise
        self.close()
        raise StopIteration

    def close(self) -> None:
        """Abort what is unfinished; a reader that waits gets the end."""
        self._news.end()


class AsyncStream(AsyncIterator[RequestOutput]):
    """:class:`Stream` for a running event loop, which is never blocked."""

    def __init__(self, handles: Sequence[Readable], owner: Owner) -> None:
        self._owner = owner
        self._waker = _Waker(owner)
        self._news = _News(handles, owner, self._waker.wake)
        weakref.finalize(self, self._news.end).atexit = False

    async def __anext__(self) -> RequestOutput:
        news = self._news
        try:
            while True:
                self._waker.enter()
                output = news.take()
                if output is not None:
                    return output
                if news.all_ended:
                    break
                self._owner.check_wait()
                await self._waker.wait()
        except BaseException:
            self._news.end()
            raise
        self._news.end()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Abort what is unfinished."""
        self._news.end()


class _Waker:
    """Wakes the tasks that read one stream, from any thread."""

    def __init__(self, owner: Owner) -> None:
        self._bells = owner.bells
        self._loop: asyncio.AbstractEventLoop | None = None
        self._bell: LoopBell | None = None
        self._waiting: deque[asyncio.Future[None]] = deque()

    def enter(self) -> None:
        """Be in the running loop; what wakes from here on ends the next :meth:`wait`."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._waiting.clear()  # of a loop that has ended
            self._loop, self._bell = loop, self._bells.of_loop(loop)

    def wait(self) -> asyncio.Future[None]:
        """What ends when somebody wakes."""
        assert self._loop is not None  # entered
        waiting = self._loop.create_future()
        self._waiting.append(waiting)
        return waiting

    def wake(self) -> None:
        """End the waits. Any thread may call."""
        if self._bell is not None:
            self._bell.add(self._answer)
            self._bells.ring(self._bell)

    def _answer(self) -> None:
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.done():  # its task was not cancelled
                waiting.set_result(None)


async def wait_async(handle: Readable, owner: Owner) -> RequestOutput:
    """Wait for the final output of one handle; being cancelled aborts the request."""
    handle.check_wait()
    waker = _Waker(owner)
    waker.enter()
    handle.add_done_callback(lambda _: waker.wake())
    try:
        await waker.wait()
    finally:
        handle.abort()
    return handle.final()
