"""Log-probabilities of prompt tokens, a bounded number of positions at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from ...sampling.logprobs import prompt_logprobs
from .host_copy import HostCopy
from .layout import ScoreRange

# Positions whose vocabulary-wide logits exist at once while a prompt is scored: bounds peak memory.
SCORE_CHUNK = 256


@dataclass(frozen=True)
class PromptScores:
    """Log-probabilities of consecutive prompt tokens.

    ``row`` is the index of a row; ``values`` holds ``target_ids`` [n] int64, ``logprobs`` [n] fp32 and, if
    asked for, ``top_values`` and ``top_ids`` [n, K].
    """

    row: int
    values: HostCopy


def score_prompts(
    ranges: Sequence[ScoreRange],
    hidden: torch.Tensor,
    tokens: torch.Tensor,
    compute_logits: Callable[[torch.Tensor], torch.Tensor],
) -> Iterator[PromptScores]:
    """Score ``ranges``, in chunks of ``SCORE_CHUNK`` positions.

    ``hidden`` [T, H] are the states of all of the step's tokens; ``tokens`` is the token table.
    """
    for score in ranges:
        offset = score.token - score.first
        for first in range(score.first, score.last, SCORE_CHUNK):
            last = min(first + SCORE_CHUNK, score.last)
            logits = compute_logits(hidden[first + offset : last + offset])
            targets = tokens[score.slot, first + 1 : last + 1].long()
            logprobs, values, ids = prompt_logprobs(logits, targets, score.top)
            copy = {"target_ids": targets, "logprobs": logprobs, "top_values": values, "top_ids": ids}
            yield PromptScores(score.row, HostCopy(copy))
