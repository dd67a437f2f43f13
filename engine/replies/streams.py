"""Reading one or many handles as they advance, from threads or from an event loop.

A stream owns its requests from the beginning: whatever becomes of it, none runs on for nobody.
The engine's thread wakes readers once a step, and readers look for themselves what is new of their handles;
so a slow one costs neither time nor memory.
"""

from __future__ import annotations

import weakref
from collections.abc import AsyncIterator, Iterator, Sequence

from .news import News
from .outputs import RequestOutput
from .readable import Owner, Readable
from .sleep import AsyncSleep, Sleep


class Stream(Iterator[RequestOutput]):
    """Snapshots of one or more requests, until every one has ended.

    It owns them: closed, dropped or left by an exception, begun or not, it aborts those that are unfinished.
    """

    def __init__(self, handles: Sequence[Readable], owner: Owner) -> None:
        self._owner = owner
        self._sleep = Sleep(owner)
        self._news = News(handles, owner, self._sleep.wake)
        self._sleep.begin(steps=self._news.grows)
        weakref.finalize(self, _end, owner, self._news, self._sleep).atexit = False

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
        _end(self._owner, self._news, self._sleep)


class AsyncStream(AsyncIterator[RequestOutput]):
    """:class:`Stream` for a running event loop, which is never blocked."""

    def __init__(self, handles: Sequence[Readable], owner: Owner) -> None:
        self._owner = owner
        self._sleep = AsyncSleep(owner)
        self._news = News(handles, owner, self._sleep.wake)
        self._sleep.begin(self._news if self._news.grows else None)
        weakref.finalize(self, _end, owner, self._news, self._sleep).atexit = False

    async def __anext__(self) -> RequestOutput:
        news = self._news
        try:
            self._sleep.enter()
            while True:
                output = news.take()
                if output is not None:
                    return output
                if news.all_ended:
                    break
                self._owner.check_wait()
                await self._sleep.wait()
        except BaseException:
            self._end()
            raise
        self._end()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Abort what is unfinished."""
        self._end()

    def _end(self) -> None:
        _end(self._owner, self._news, self._sleep)


def _end(owner: Owner, news: News, sleep: Sleep | AsyncSleep) -> None:
    """End a stream; not one of its methods, which would keep it. In a forked child it is the parent's."""
    if not owner.is_forked:
        news.end()
        sleep.end()


async def wait_async(handle: Readable, owner: Owner) -> RequestOutput:
    """Wait for the final output of one handle; being cancelled aborts the request."""
    handle.check_wait()
    sleep = AsyncSleep(owner)
    sleep.enter()
    handle.add_done_callback(lambda _: sleep.wake())
    try:
        await sleep.wait()
    finally:
        handle.abort()
    return handle.final()
