"""Who guesses how outputs go on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..request import Request


class Proposer(Protocol):
    """Forecasts tokens from what the host knows: grammars, texts seen before, lists.

    A wrong forecast costs time and changes nothing: drafts are verified. Called by the engine's thread
    between two steps, so it should take microseconds and must not raise.
    """

    def takes(self, request: Request) -> bool:
        """Whether there may ever be a forecast for ``request``; asked when it first starts to run.

        One that nobody takes decodes at no cost.
        """

    def look_ahead(self, request: Request) -> Sequence[int]:
        """Likely tokens behind the committed ones of a request that it takes; none without a guess.

        Called after each commit that brings the request tokens. Only the first ``MAX_DRAFTS`` count.
        """
