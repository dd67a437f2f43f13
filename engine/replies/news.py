"""What is new of requests that somebody reads as they advance."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence

from ...errors import RootletError
from .outputs import RequestOutput
from .readable import Owner, Readable


class News:
    """What is new of some handles, in order of their first unread change. Any thread may read.

    Args:
        wake: called on the engine's thread when a handle has ended, and on any when nobody reads any more.
    """

    def __init__(self, handles: Sequence[Readable], owner: Owner, wake: Callable[[], None]) -> None:
        self._lock = threading.Lock()
        self._wake = wake
        self._owner = owner
        self._bells = owner.bells
        self._pid = os.getpid()  # asked for every token, so without a detour over the owner
        self._num_steps = -1  # after which somebody looked
        self._handles = list(handles)
        # One call changes or copies each of these as a whole, so that readers need no lock.
        self._due = deque(handles)  # to look at; what is there already counts
        self._found: deque[RequestOutput] = deque()  # and not taken yet
        self._open = set(handles)
        self._growing = dict.fromkeys(handle for handle in handles if handle.is_streamed)
        if owner.is_forked:
            owner.check_wait()
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
        if os.getpid() != self._pid:
            self._owner.check_wait()

    def find(self) -> bool:
        """Whether there is news. A snapshot that is found is the next to be taken."""
        if self._found:
            return True
        handle = self._next()
        while handle is not None:
            try:
                output = handle.fresh()
            except RootletError:  # from now on it raises that whenever it is asked: also who takes
                self._due.appendleft(handle)
                return True
            if output is not None:
                self._found.append(output)
                return True
            if handle.done():
                self._due.appendleft(handle)
                return True
            handle = self._next()
        return False

    def take(self) -> RequestOutput | None:
        """What is new of one handle, None if nothing is; its final output comes once."""
        while True:
            if self._found:
                try:
                    return self._found.popleft()
                except IndexError:  # another thread was quicker
                    continue
            handle = self._next()
            if handle is None:
                return None
            output = handle.fresh()
            if output is not None:
                return output
            if handle.done() and self._close(handle):  # else it has no news, or the end was taken already
                return handle.final()

    def _next(self) -> Readable | None:
        """A handle to look at. Those that go on are looked at once after each step."""
        while True:
            if self._due:
                self.check_process()
                try:
                    return self._due.popleft()
                except IndexError:
                    continue
            num_steps = self._bells.num_steps
            if num_steps == self._num_steps or not self._growing:
                return None
            self._num_steps = num_steps
            self._due.extend(list(self._growing))

    def end(self) -> None:
        """Nobody reads any more: abort what is unfinished."""
        with self._lock:
            handles, self._handles = self._handles, []
            self._open.clear()
            self._growing.clear()
            self._due.clear()
            self._found.clear()
        self._wake()
        for handle in handles:
            handle.unwatch(self._mark)
            handle.abort()

    def _mark(self, handle: Readable) -> None:
        """On the engine's thread."""
        self._growing.pop(handle, None)
        self._due.append(handle)
        self._wake()

    def _close(self, handle: Readable) -> bool:
        """Whether this was the first to ask; its final output is the caller's."""
        try:
            self._open.remove(handle)
        except KeyError:
            return False
        return True
