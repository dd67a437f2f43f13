"""Who runs a request, for handles that no engine made."""

from __future__ import annotations

from collections.abc import Callable


class FakeOwner:
    """Passes aborts to ``abort``; everybody may wait."""

    is_forked = False
    pump = None

    def __init__(self, abort: Callable[[str], object] = lambda rid: None) -> None:
        self.abort = abort

    def check_wait(self) -> None:
        pass
