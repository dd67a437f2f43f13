"""How many prompt tokens a step may compute: many are cheap per token, few keep streams smooth."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .request import Request

BACKLOG_SHARE = 2
"""A step takes at least one part in so many of the prompt tokens that wait: where many do, streams would be
slow for longer, and first tokens late, if steps stayed short."""


class PrefillBudget:
    """Prompt tokens of a step.

    Args:
        largest: never more.
        beside_streams: so many while somebody streams tokens and little waits; None: as many as ever.
    """

    def __init__(self, largest: int, beside_streams: int | None) -> None:
        self.largest = largest
        self._beside_streams = beside_streams

    def of_step(self, running: Iterable[Request], waiting: Iterable[Request]) -> int:
        """The budget of a step that may compute prompts of these requests."""
        if self._beside_streams is None or not any(map(_is_read, running)):
            return self.largest
        backlog, enough = 0, BACKLOG_SHARE * self.largest
        for request in chain(running, waiting):
            backlog += request.num_remaining_tokens
            if backlog >= enough:
                break
        return min(self.largest, max(self._beside_streams, backlog // BACKLOG_SHARE))


def _is_read(request: Request) -> bool:
    """Whether somebody waits for its next token, which is not the first."""
    return request.is_streamed and request.num_tokens > request.num_prompt_tokens
