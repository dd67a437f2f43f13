"""Jump-forward: where a grammar leaves one continuation, its text is known ("name": after {).

How the model would cut that text into tokens is not, so the tokenizer's cut is a forecast like any other:
nothing is re-tokenised, and text, tokens and distribution are those of one step per token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..request import Request

_MAX_TEXT = 256  # characters looked at


class ForcedText:
    """Forecasts what constraints force.

    ``cut``: text to tokens of exactly its bytes, none if there is no such cut.
    """

    def __init__(self, cut: Callable[[str], Sequence[int]]) -> None:
        self._cut = lru_cache(maxsize=4096)(cut)  # the same keys, again and again

    def takes(self, request: Request) -> bool:
        """See :class:`.Proposer`."""
        return request.constraint is not None

    def look_ahead(self, request: Request) -> Sequence[int]:
        """See :class:`.Proposer`."""
        text = "" if request.constraint is None else request.constraint.matcher.forced_text()
        try:
            return self._cut(text[:_MAX_TEXT]) if len(text) > 1 else ()
        except Exception:  # the tokenizer's: what it cannot cut is not guessed
            return ()
