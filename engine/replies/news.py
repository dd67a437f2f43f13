"""What is new of requests that somebody reads as they advance."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from .outputs import RequestOutput
from .readable import Owner, Readable


class News:
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
        self.check_process()
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

    def check_process(self) -> None:
        """Raise EngineForkedError in a forked child, before a lock is taken that may be held for ever."""
        if self._owner.is_forked:
            self._owner.check_wait()

    def look(self) -> bool:
        """Look which handles have news. Returns whether any has."""
        found = [handle for handle in list(self._growing) if handle.has_news]
        with self._lock:
            self._changed.update(dict.fromkeys(found))
            return bool(self._changed)

    def take(self) -> RequestOutput | None:
        """What is new of one handle, None if nothing is; its final output comes once."""
        self.check_process()
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
        """Nobody reads any more: abort what is unfinished."""
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
