"""What a step made besides tokens goes to the requests that asked for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .batch import Batch, StepResult
    from .drafts.drafter import Verdict
    from .request import Request


def collect(batch: Batch, requests: Sequence[Request], result: StepResult, verdict: Verdict) -> None:
    """Hand over what a step made besides tokens; ``requests``: those of the tokens that are kept."""
    for index, scores in result.prompt_scores.items():
        batch.rows[index].request.collected.prompt_logprobs += scores
    for index, states in result.hidden_states:
        request = batch.rows[index].request
        if not request.is_finished:
            kept = len(states) - verdict.surplus.get(request, 0)
            request.collected.hidden_states.append(states[:kept])
    for request, packed in zip(requests, verdict.kept(result.logprobs or [])):
        if packed is not None and request.finish_reason is None:
            request.collected.output_logprobs.append(packed)
    for request, mask in zip(requests, verdict.kept(result.sampling_masks or [])):
        if mask is not None and request.finish_reason is None:
            request.collected.sampling_masks.append(mask)
    for request, embedding in zip(requests, result.embeddings or ()):
        request.collected.embedding = embedding
