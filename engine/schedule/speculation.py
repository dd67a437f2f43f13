"""What is guessed of one request's next tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(eq=False, slots=True)
class Speculation:
    """State of a request that may have drafts; :mod:`.drafts` says what becomes of them.

    Attributes:
        forecast: likely tokens behind the committed ones; None: nobody has looked yet.
        odds: how often tokens were as forecast, lately; None: of this request nothing is known.
        drafts: forecast tokens that a launched step computes, unverified.
    """

    forecast: Sequence[int] | None = None
    odds: float | None = None
    drafts: Sequence[int] = ()

    @property
    def may_draft(self) -> bool:
        """Whether a step that computes just the newest token may be one too few."""
        return self.forecast is None or len(self.forecast) > 1
