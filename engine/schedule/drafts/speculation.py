"""What is guessed of one request's next tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(eq=False, slots=True)
class Speculation:
    """State of a request that may have drafts; :mod:`.drafter` says what becomes of them.

    Attributes:
        proposers: places of those that take the request among the drafter's, ascending.
        forecast: likely tokens behind the committed ones; None: nobody has looked yet.
        source: place of the proposer whose forecast it is.
        odds: by place, how often tokens were as that proposer forecast, lately.
        drafts: forecast tokens that a launched step computes, unverified.
    """

    proposers: tuple[int, ...]
    forecast: Sequence[int] | None = None
    source: int = 0
    odds: dict[int, float] = field(default_factory=dict)
    drafts: Sequence[int] = ()

    @property
    def may_draft(self) -> bool:
        """Whether a step that computes just the newest token may be one too few."""
        return self.forecast is None or len(self.forecast) > 1
