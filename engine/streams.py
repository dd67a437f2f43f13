"""Reading one or many handles as they advance, from threads or from an event loop.

The engine's thread only marks a handle as new and wakes the reader; a reader that is busy finds one mark per
handle, however many tokens have passed, so a slow consumer costs the engine neither time nor memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .engine import Engine
    from .handle import RequestHandle
    from .outputs import RequestOutput


class _News:
    """Handles with something new, in order of their first unread change."""

    def __init__(self, handles: Sequence[RequestHandle], wake: Callable[[], None]) -> None:
        self._lock = threading.Lock()
        self._changed: dict[RequestHandle, None] = dict.fromkeys(handles)  # what is there already counts
        self._wake = wake
        self._open = set(handles)

    @property
    def all_ended(self) -> bool:
        """True once every handle's final output was read."""
        return not self._open

    def mark(self, handle: RequestHandle) -> None:
        """Called on the engine's thread."""
        with self._lock:
            self._changed[handle] = None
        self._wake()

    def outputs(self) -> Iterator[RequestOutput]:
        """Yield what is new; a handle's final output comes once."""
        with self._lock:
            changed, self._changed = self._changed, {}
        for handle in changed:
            if handle not in self._open:  # marked once more for the end that was already seen
                continue
            ended = handle.done()  # before reading: a later snapshot can only be newer
            output = handle.latest()
            if ended:
                self._open.remove(handle)
            if output is not None and (ended or output.finish_reason is None):
                yield output  # a final one that came between the two reads has its own mark


@contextlib.contextmanager
def _watching(handles: Sequence[RequestHandle], wake: Callable[[], None]) -> Iterator[_News]:
    news = _News(handles, wake)
    with contextlib.ExitStack() as stack:
        for handle in handles:
            stack.enter_context(handle.watched(news.mark))
        yield news


def iterate(
    handles: Sequence[RequestHandle], pump: Callable[[], object] | None = None
) -> Iterator[RequestOutput]:
    """Yield snapshots of all handles until every one has ended; leaving early aborts the rest.

    ``pump`` advances an engine that has no thread of its own.
    """
    event = threading.Event()
    try:
        with _watching(handles, event.set) as news:
            while True:
                event.clear()
                yield from news.outputs()
                if news.all_ended:
                    return
                if pump is not None:
                    pump()
                else:
                    event.wait()
    finally:
        for handle in handles:
            handle.abort()


async def iterate_async(handles: Sequence[RequestHandle]) -> AsyncIterator[RequestOutput]:
    """:func:`iterate` for a running event loop, which is never blocked."""
    loop, event = asyncio.get_running_loop(), asyncio.Event()
    try:
        with _watching(handles, _waker(loop, event)) as news:
            while True:
                event.clear()
                for output in news.outputs():
                    yield output
                if news.all_ended:
                    return
                await event.wait()
    finally:
        for handle in handles:
            handle.abort()


async def wait_async(handle: RequestHandle) -> RequestOutput:
    """Wait for the final output of one handle; being cancelled aborts the request."""
    loop, event = asyncio.get_running_loop(), asyncio.Event()
    wake = _waker(loop, event)
    handle.add_done_callback(lambda _: wake())
    try:
        await event.wait()
    finally:
        handle.abort()
    return handle.latest()


def stream_and_merge(engine: Engine, prompt: str, sampling_params: Any = None) -> str:
    """Stream the answer to one text and return it whole; what the documentation's helper of that name does.

    Snapshots are cumulative, so there is nothing to merge: the last one is the answer.
    """
    text = ""
    for output in engine.generate(prompt, sampling_params, stream=True):
        text = output.text
    return text


async def async_stream_and_merge(
    engine: Engine, prompt: str, sampling_params: Any = None
) -> AsyncIterator[str]:
    """Yield the answer to one text piece by piece, each piece once."""
    shown = 0
    async for output in await engine.async_generate(prompt, sampling_params, stream=True):
        if len(output.text) > shown:
            yield output.text[shown:]
            shown = len(output.text)


def _waker(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> Callable[[], None]:
    def wake() -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed and its reader with it
            loop.call_soon_threadsafe(event.set)

    return wake
