"""Who runs a request, for handles that no engine made."""

from __future__ import annotations

from collections.abc import Callable

from rootlet.engine.replies.bells import Bells


class FakeOwner:
    """Passes aborts to ``abort``; everybody may wait."""

    is_forked = False
    pump = None

    def __init__(self, abort: Callable[[str], object] = lambda rid: None) -> None:
        self.abort = abort
        self.bells = Bells()

    def check_wait(self) -> None:
        pass
