"""What streams and progress bars need of a request and of who runs it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from .bells import Bells
from .outputs import RequestOutput


class Owner(Protocol):
    """Who runs the request (the :class:`~rootlet.engine.loop.EngineLoop`)."""

    @property
    def bells(self) -> Bells:
        """What wakes readers."""

    @property
    def is_forked(self) -> bool:
        """True in a forked child, where nobody runs it and locks may be held for ever."""

    @property
    def pump(self) -> Callable[[], object] | None:
        """Advances an engine that has no thread of its own."""

    def check_wait(self) -> None:
        """Raise where waiting would never end: on the engine's own thread, and in a forked child."""

    def abort(self, rid: str) -> None:
        """Have the request ended; raises EngineForkedError in a forked child."""


class Readable(Protocol):
    """A request that advances and ends (a :class:`~rootlet.engine.replies.handle.RequestHandle`)."""

    def done(self) -> bool:
        """True once the final output, or an error, is there."""

    def fresh(self) -> RequestOutput | None:
        """A snapshot that shows what none has shown; raises the error that ended the request."""

    def final(self) -> RequestOutput:
        """The output of a request that has ended; raises the error that ended it."""

    def abort(self) -> None:
        """Have it ended, if it has not ended."""

    def check_wait(self) -> None:
        """Raise where waiting for the end would never end."""

    @property
    def is_streamed(self) -> bool:
        """Whether it has snapshots before it ends."""

    @property
    def has_news(self) -> bool:
        """Whether it goes on and has tokens that no snapshot has shown."""

    def watch(self, watcher: Callable[[Readable], None]) -> None:
        """Call ``watcher(self)`` on the engine's thread when it has ended."""

    def unwatch(self, watcher: Callable[[Readable], None]) -> None:
        """Undo :meth:`watch`."""

    def add_done_callback(self, callback: Callable[[Readable], None]) -> None:
        """Call ``callback(self)`` when done."""
