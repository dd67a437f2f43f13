"""Waiting for news of a stream: threads on a condition, tasks of an event loop on a future."""

from __future__ import annotations

import asyncio
import threading
from collections import deque

from .bells import LoopBell
from .news import News
from .readable import Owner
from .rest import Rest


class Sleep:
    """Where threads wait for news of one stream; a bell and a stepper."""

    def __init__(self, owner: Owner) -> None:
        self._bells = owner.bells
        self._condition = threading.Condition()
        self._has_ended = threading.Event()
        self._rest = Rest(owner.bells.longest_rest)
        self.num_rings = 0

    def begin(self, *, steps: bool) -> None:
        """With ``steps``: wake after each."""
        if steps:
            self._bells.add(self)

    def end(self) -> None:
        """Let everybody go, now and from now on."""
        self._bells.remove(self)
        with self._condition:
            self._has_ended.set()
            self._condition.notify_all()

    def wait(self, seen: int) -> None:
        """Block until there were more than ``seen`` rings."""
        self._rest.begin()
        if left := self._rest.left:
            self._has_ended.wait(left)  # no ring wakes it here
        with self._condition:
            while self.num_rings == seen and not self._has_ended.is_set():
                self._condition.wait()
        self._rest.end()

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


class AsyncSleep:
    """Where tasks wait for news of one stream, or for the end of one request."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._bells = owner.bells
        self._loop: asyncio.AbstractEventLoop | None = None
        self._bell: LoopBell | None = None
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._news: News | None = None

    def begin(self, news: News | None) -> None:
        """Wake after each step that brought some of it."""
        self._news = news

    def end(self) -> None:
        """No more steps."""
        if self._bell is not None:
            self._bell.remove(self._look)

    def enter(self) -> None:
        """Be in the running loop; what wakes from here on ends the next :meth:`wait`.

        Raises EngineForkedError in the first event loop of a forked child.
        """
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            if self._owner.is_forked:  # before a lock is taken that may be held for ever
                self._owner.check_wait()
            self._waiting.clear()  # of a loop that has ended
            self.end()
            self._loop, self._bell = loop, self._bells.of_loop(loop)
            if self._news is not None:
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
        if self._waiting and self._news is not None and self._news.find():
            self._answer()

    def _answer(self) -> None:
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.done():  # its task was not cancelled
                waiting.set_result(None)
