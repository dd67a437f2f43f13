"""Reading one or many handles as they advance, from threads or from an event loop.

A stream owns its requests from the beginning: whatever becomes of it, none runs on for nobody.
The engine's thread wakes readers once a step, and readers look for themselves what is new of their handles;
so a slow one costs neither time nor memory.
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
    """What is new of some handles, in order of their first unread change. Any thread may read.

    Args:
        wake: called on the engine's thread when a handle has ended, and on any when nobody reads any more.
    """

    def __init__(self, handles: Sequence[Readable], owner: Owner, wake: Callable[[], None]) -> None:
        self._lock = threading.Lock()
        self._changed: dict[Readable, None] = dict.fromkeys(handles)  # what is there already counts
        self._wake = wake
        self._owner = owner
        self._handles = list(handles)
        self._open = set(handles)
        self._growing = dict.fromkeys(handle for handle in handles if handle.is_streamed)
        self._check_process()
        for handle in handles:
            handle.watch(self._mark)

    @property
    def all_ended(self) -> bool:
        """True once every handle's final output was read, or nobody reads any more."""
        return not self._open

    @property
    def grows(self) -> bool:
        """Whether there may be news before another handle ends."""
        return bool(self._growing)

    def look(self) -> bool:
        """Look which handles have news. Returns whether any has."""
        with self._lock:
            for handle in self._growing:
                if handle.has_news:
                    self._changed[handle] = None
            return bool(self._changed)

    def take(self) -> RequestOutput | None:
        """What is new of one handle, None if nothing is; its final output comes once."""
        self._check_process()
        while True:
            with self._lock:
                handle = next(iter(self._changed), None)
                if handle is not None:
                    del self._changed[handle]
            if handle is None:
                if not self.look():
                    return None
            elif handle in self._open:  # else marked once more for the end that was already seen
                ended = handle.done()  # before reading: a later snapshot can only be newer
                output = handle.latest()
                if ended and not self._close(handle):
                    continue  # another thread was quicker
                if output is not None and (ended or output.finish_reason is None):
                    return output  # a final one that came between the two reads has its own mark

    def end(self) -> None:
        """Nobody reads any more: abort what is unfinished. In a forked child it is the parent's."""
        if self._owner.is_forked:
            return
        with self._lock:
            handles, self._handles = self._handles, []
            self._open.clear()
            self._growing.clear()
        self._wake()
        for handle in handles:
            handle.unwatch(self._mark)
            handle.abort()

    def _mark(self, handle: Readable) -> None:
        """On the engine's thread."""
        with self._lock:
            self._changed[handle] = None
            self._growing.pop(handle, None)
        self._wake()

    def _close(self, handle: Readable) -> bool:
        with self._lock:
            is_mine = handle in self._open
            self._open.discard(handle)
            return is_mine

    def _check_process(self) -> None:
        """Raise EngineForkedError in a forked child, before a lock is taken that may be held for ever."""
        if self._owner.is_forked:
            self._owner.check_wait()


class Stream(Iterator[RequestOutput]):
    """Snapshots of one or more requests, until every one has ended.

    It owns them: closed, dropped or left by an exception, begun or not, it aborts those that are unfinished.
    """

    def __init__(self, handles: Sequence[Readable], owner: Owner) -> None:
        self._owner = owner
        self._sleep = _Sleep(owner)
        self._news = _News(handles, owner, self._sleep.wake)
        self._sleep.begin(steps=self._news.grows)
        weakref.finalize(self, _end, self._news, self._sleep).atexit = False

    def __next__(self) -> RequestOutput:
        news = self._news
        try:
            while True:
                seen = self._sleep.num_rings
                output = news.take()
                if output is not None:
                    return output
                if news.all_ended:
                    break
                self._owner.check_wait()
                pump = self._owner.pump
                if pump is not None:
                    pump()
                else:
                    self._sleep.wait(seen)
        except BaseException:
            self.close()
            raise
        self.close()
        raise StopIteration

    def close(self) -> None:
        """Abort what is unfinished; a reader that waits gets the end."""
        _end(self._news, self._sleep)


class AsyncStream(AsyncIterator[RequestOutput]):
    """:class:`Stream` for a running event loop, which is never blocked."""

    def __init__(self, handles: Sequence[Readable], owner: Owner) -> None:
        self._owner = owner
        self._sleep = _AsyncSleep(owner)
        self._news = _News(handles, owner, self._sleep.wake)
        self._sleep.begin(self._news.look if self._news.grows else None)
        weakref.finalize(self, _end, self._news, self._sleep).atexit = False

    async def __anext__(self) -> RequestOutput:
        news = self._news
        try:
            while True:
                self._sleep.enter()
                output = news.take()
                if output is not None:
                    return output
                if news.all_ended:
                    break
                self._owner.check_wait()
                await self._sleep.wait()
        except BaseException:
            _end(news, self._sleep)
            raise
        _end(news, self._sleep)
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Abort what is unfinished."""
        _end(self._news, self._sleep)


def _end(news: _News, sleep: _Sleep | _AsyncSleep) -> None:
    """End a stream; not one of its methods, which would keep it."""
    news.end()
    sleep.end()


class _Sleep:
    """Where threads wait for news of one stream; a bell and a stepper."""

    def __init__(self, owner: Owner) -> None:
        self._bells = owner.bells
        self._condition = threading.Condition()
        self._has_ended = False
        self.num_rings = 0

    def begin(self, *, steps: bool) -> None:
        """With ``steps``: wake after each."""
        if steps:
            self._bells.add(self)

    def end(self) -> None:
        """Let everybody go, now and from now on."""
        self._bells.remove(self)
        with self._condition:
            self._has_ended = True
            self._condition.notify_all()

    def wait(self, seen: int) -> None:
        """Block until there were more than ``seen`` rings."""
        with self._condition:
            while self.num_rings == seen and not self._has_ended:
                self._condition.wait()

    def wake(self) -> None:
        """Have the threads woken, soon."""
        self._bells.ring(self)

    def step(self) -> None:
        """After every step."""
        self._bells.ring(self)

    def ring(self) -> None:
        """Wake them."""
        with self._condition:
            self.num_rings += 1
            self._condition.notify_all()


class _AsyncSleep:
    """Where tasks wait for news of one stream, or for the end of one request."""

    def __init__(self, owner: Owner) -> None:
        self._bells = owner.bells
        self._loop: asyncio.AbstractEventLoop | None = None
        self._bell: LoopBell | None = None
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._has_news: Callable[[], bool] | None = None

    def begin(self, has_news: Callable[[], bool] | None) -> None:
        """Wake after each step in which ``has_news()``."""
        self._has_news = has_news

    def end(self) -> None:
        """No more steps."""
        if self._bell is not None:
            self._bell.remove(self._look)

    def enter(self) -> None:
        """Be in the running loop; what wakes from here on ends the next :meth:`wait`."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._waiting.clear()  # of a loop that has ended
            self.end()
            self._loop, self._bell = loop, self._bells.of_loop(loop)
            if self._has_news is not None:
                self._bell.add(self._look)

    def wait(self) -> asyncio.Future[None]:
        """What ends when somebody wakes."""
        assert self._loop is not None  # entered
        waiting = self._loop.create_future()
        self._waiting.append(waiting)
        return waiting

    def wake(self) -> None:
        """End the waits. Any thread may call."""
        if self._bell is not None:
            self._bell.call(self._answer)
            self._bells.ring(self._bell)

    def _look(self) -> None:
        if self._waiting and self._has_news is not None and self._has_news():
            self._answer()

    def _answer(self) -> None:
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.done():  # its task was not cancelled
                waiting.set_result(None)


async def wait_async(handle: Readable, owner: Owner) -> RequestOutput:
    """Wait for the final output of one handle; being cancelled aborts the request."""
    handle.check_wait()
    sleep = _AsyncSleep(owner)
    sleep.enter()
    handle.add_done_callback(lambda _: sleep.wake())
    try:
        await sleep.wait()
    finally:
        handle.abort()
    return handle.final()
