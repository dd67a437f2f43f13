"""Waking readers once a step, however many have news: the engine's thread tells everybody first, then rings.

A reader that is woken wants the interpreter, which the engine's thread has; woken in the middle of a step,
each would interrupt it. An event loop is woken by one call into it, and wakes its own readers itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol

from ..host.code import call_host
from .rest import LONGEST, Rest


class Bell(Protocol):
    """Something to ring; it must be hashable."""

    def ring(self) -> None:
        """Wake who waits. Any thread may call."""


class Stepper(Protocol):
    """What wants to hear of every step; it must be hashable."""

    def step(self) -> None:
        """A step is over, and there may be news. On the engine's thread: to be quick."""


class LoopBell:
    """Wakes readers of one event loop: one call into it, in which they look for themselves."""

    def __init__(self, loop: asyncio.AbstractEventLoop, bells: Bells) -> None:
        self._loop = weakref.ref(loop)
        self._bells = bells
        self._due: deque[Callable[[], None]] = deque()
        self._looking: dict[Callable[[], None], None] = {}
        self._will_look = False
        self._rest = Rest(bells.longest_rest)

    def call(self, answer: Callable[[], None]) -> None:
        """Have the next ring call ``answer`` in the loop. Any thread may call."""
        self._due.append(answer)

    def add(self, look: Callable[[], None]) -> None:
        """Have ``look`` called in the loop after every step."""
        self._looking[look] = None
        self._bells.add(self)

    def remove(self, look: Callable[[], None]) -> None:
        """Undo :meth:`add`, if it was done."""
        self._looking.pop(look, None)
        if not self._looking:
            self._bells.remove(self)

    def step(self) -> None:
        """A step is over. A loop that has not looked since the last one will see both."""
        if not self._will_look:
            self._will_look = True
            self._call(self._look)

    def ring(self) -> None:
        """Have what is due called."""
        self._call(self._answer)

    def _call(self, function: Callable[[], None]) -> None:
        loop = self._loop()
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # it was closed, and its tasks with it
                loop.call_soon_threadsafe(function)

    def _look(self) -> None:
        left, loop = self._rest.left, self._loop()
        if loop is None or not left:
            self._look_now()
        else:
            loop.call_later(left, self._look_now)

    def _look_now(self) -> None:
        self._will_look = False  # first: what comes from here on may come too late for this look
        self._rest.end()
        for look in list(self._looking):
            look()
        loop = self._loop()
        if loop is not None:
            loop.call_soon(self._rest.begin)  # behind the tasks that are woken now

    def _answer(self) -> None:
        for _ in range(len(self._due)):
            self._due.popleft()()


class Bells:
    """The bells of one engine's readers.

    ``longest_rest``: seconds that readers rest at most after they have read, see :class:`Rest`.
    """

    def __init__(self, longest_rest: float = LONGEST) -> None:
        self.longest_rest = longest_rest
        self.num_steps = 0
        self._holder: int | None = None
        self._due: dict[Bell, None] = {}  # the holder's alone
        self._steppers: dict[Stepper, None] = {}
        self._lock = threading.Lock()
        self._of_loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, LoopBell] = (
            weakref.WeakKeyDictionary()
        )

    def of_loop(self, loop: asyncio.AbstractEventLoop) -> LoopBell:
        """The bell of an event loop, the same one for all readers in it."""
        with self._lock:
            bell = self._of_loops.get(loop)
            if bell is None:
                bell = self._of_loops[loop] = LoopBell(loop, self)
            return bell

    def ring(self, bell: Bell) -> None:
        """Ring now, or on the thread that holds the bells once it lets go of them."""
        if threading.get_ident() == self._holder:
            self._due[bell] = None
        else:
            bell.ring()

    def add(self, stepper: Stepper) -> None:
        """Have it hear of every step."""
        self._steppers[stepper] = None

    def remove(self, stepper: Stepper) -> None:
        """Undo :meth:`add`, if it was done."""
        self._steppers.pop(stepper, None)

    def step(self) -> None:
        """A step is over."""
        self.num_steps += 1
        for stepper in list(self._steppers):
            call_host("A reader", stepper.step)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Within the block the rings of this thread wait for its end, and each bell is rung once."""
        self._holder = threading.get_ident()
        try:
            yield
        finally:
            self._holder = None
            due, self._due = self._due, {}
            for bell in due:
                call_host("A reader", bell.ring)
