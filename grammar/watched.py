"""What is seen to beside a grammar, because no grammar says it well: a matcher with a watch over it.

A watch reads the output along with the matcher, takes further tokens from its masks and refuses them. What
it has to know of the grammar it asks there: a place of which it must know has one more way to go on, which
begins with ``tree.SIGN`` and a name; no mask allows that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np

    from .interface import Matcher


class Watch(Protocol):
    """Where one output stands, as far as the watch needs to know."""

    def narrow(self, mask: np.ndarray, matcher: Matcher) -> None:
        """Take what may not be from a mask [ceil(V / 32)] int32 of ``matcher``, which stands there too.

        Raises GrammarError where nothing is left.
        """

    def keeps(self, token_id: int, matcher: Matcher) -> bool:
        """Take the next token if it may be; ``matcher`` stands before it."""

    def rollback(self, count: int) -> None:
        """Take back the last ``count`` tokens."""

    def fork(self) -> Watch:
        """Another one that stands here; what came before cannot be taken back there."""


class WatchedMatcher:
    """A :class:`.interface.Matcher`, narrowed by a watch."""

    def __init__(self, matcher: Matcher, watch: Watch) -> None:
        self._matcher = matcher
        self._watch = watch

    def fill(self, masks: np.ndarray, row: int) -> None:
        """Write the allowed tokens to a row of ``masks``."""
        self._matcher.fill(masks, row)
        self._watch.narrow(masks[row], self._matcher)

    def accept(self, token_id: int) -> bool:
        """Take the next token; False if it is not allowed."""
        if self.is_terminated or not self._watch.keeps(token_id, self._matcher):
            return False
        if not self._matcher.accept(token_id):
            self._watch.rollback(1)
            return False
        return True

    def rollback(self, count: int) -> None:
        """Take back the last ``count`` tokens."""
        if count:
            self._matcher.rollback(count)
            self._watch.rollback(count)

    def forced_text(self) -> str:
        """What any output must go on with."""
        return self._matcher.forced_text()

    @property
    def is_terminated(self) -> bool:
        """True once a stop token was accepted."""
        return self._matcher.is_terminated

    def follows(self, text: bytes) -> bool:
        """Whether the grammar lets a text stand next; the watch is not asked."""
        return self._matcher.follows(text)

    def fork(self) -> WatchedMatcher:
        """Another one that stands here."""
        return WatchedMatcher(self._matcher.fork(), self._watch.fork())
