"""Log-probabilities of sampled tokens and of prompts.

Which distribution: for a prompt, log_softmax of the raw logits. For a sampled token, what the row asks for
(``distributions``): log_softmax(logits / temperature) minus the log of the mass that filters keep, if the
distribution goes by them; tokens that they drop have the lowest finite fp32 number. For a greedy token,
log_softmax of the logits after biases, penalties and grammar mask. Decided row by row: batch mates never
matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .rows import Rows

TokenLogprobs = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]
"""Of R rows: the log-probability of each's own token [R] fp32, and the values [R, K] fp32 and ids [R, K]
int64 of the likeliest ones, descending; None if K is 0."""

_BLOCK = 128
_PROMPT_ROWS = 64
LOWEST = torch.finfo(torch.float32).min


def top_tokens(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Ids [R, count] of the highest ``scores`` [R, V], descending, equal ones by lowest id first.

    The best ``count`` tokens lie in the best ``count`` blocks of 128 (blocks ranked by their best token,
    ties by lowest block first), so only those are sorted.
    """
    num_rows, vocab = scores.shape
    count = min(count, vocab)
    if vocab % _BLOCK:
        scores = torch.nn.functional.pad(scores, (0, -vocab % _BLOCK), value=float("-inf"))
    blocks = scores.view(num_rows, -1, _BLOCK)
    best = torch.sort(blocks.amax(2), dim=1, descending=True, stable=True).indices[:, :count]
    best = best.sort(1).values  # back in id order, for the stable sort to settle ties by
    ids = (
        best.unsqueeze(2) * _BLOCK + torch.arange(_BLOCK, dtype=torch.int64, device=scores.device)
    ).flatten(1)
    order = torch.sort(scores.gather(1, ids), dim=1, descending=True, stable=True).indices
    # padding ties only with banned tokens and has the highest ids, so the first `count` are real
    return ids.gather(1, order[:, :count])


def _widened(scores: torch.Tensor) -> torch.Tensor:
    """``scores`` [R, V] fp32 with columns of -inf up to a multiple of 4."""
    missing = -scores.shape[1] % 4
    return torch.nn.functional.pad(scores, (0, missing), value=float("-inf")) if missing else scores


def sampled_logprobs(
    scores: torch.Tensor,
    token_ids: torch.Tensor,
    nucleus: tuple[torch.Tensor, torch.Tensor] | None,
    top_k: int,
    work: torch.Tensor,
) -> TokenLogprobs:
    """Log-probabilities of sampled tokens and of the ``top_k`` most probable ones.

    Args:
        scores: [R, V] fp32, processed logits divided by the temperature (by 1 for greedy rows).
        token_ids: [R] int64, the sampled tokens.
        nucleus: [R] fp64, probability of the tokens that count, 1 if all do, and [R] int64, how many these
            are, V if all are; None where no row is filtered.
        top_k: length of the lists; 0 for none.
        work: [R, V] fp32, overwritten.

    Returns:
        (logprobs [R] fp32, top_values [R, top_k] fp32 or None, top_ids [R, top_k] int64 or None), all
        values >= finfo(fp32).min.
    """
    logprobs = torch.log_softmax(scores, 1, out=work)
    chosen = logprobs.gather(1, token_ids.unsqueeze(1))
    if nucleus is not None:
        mass, count = nucleus
        log_mass = mass.log().float().unsqueeze(1)
        chosen -= log_mass
    chosen = chosen.clamp_(min=LOWEST).squeeze(1)
    if top_k == 0:
        return chosen, None, None
    top_ids = top_tokens(scores, top_k)
    top_values = logprobs.gather(1, top_ids)
    if nucleus is not None:
        ranks = torch.arange(top_ids.shape[1], dtype=torch.int64, device=scores.device)
        top_values = (top_values - log_mass).masked_fill_(ranks >= count.unsqueeze(1), LOWEST)
    return chosen, top_values.clamp_(min=LOWEST), top_ids


def joined(
    some: Sequence[tuple[Rows, torch.Tensor, torch.Tensor | None, torch.Tensor | None]], total: int
) -> TokenLogprobs | tuple[None, None, None]:
    """The results of some of ``total`` rows each, no row twice, as those of all.

    NaN, and -1 for ids, in rows and at ranks that nobody asked for; Nones if nobody asked at all.
    """
    if not some:
        return None, None, None
    if len(some) == 1 and some[0][0].index is None:
        return some[0][1:]
    device = some[0][1].device
    width = max(0 if ids is None else ids.shape[1] for *_, ids in some)
    chosen = torch.full((total,), float("nan"), dtype=torch.float32, device=device)
    all_values = torch.full((total, width), float("nan"), dtype=torch.float32, device=device)
    all_ids = torch.full((total, width), -1, dtype=torch.int64, device=device)
    for rows, own, values, ids in some:
        rows.put(chosen, own)
        if values is not None and ids is not None:
            rows.put(all_values[:, : ids.shape[1]], values)
            rows.put(all_ids[:, : ids.shape[1]], ids)
    return (chosen, all_values, all_ids) if width else (chosen, None, None)


def prompt_logprobs(
    logits: torch.Tensor, target_ids: torch.Tensor, top_k: int
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Log-probabilities of prompt tokens: log_softmax of the raw logits in fp32.

    Computed 64 rows at a time, so memory stays bounded for long prompts.

    Args:
        logits: [n, V], any float dtype; row i predicts ``target_ids[i]``.
        target_ids: [n] int64.
        top_k: length of the lists of most probable tokens; 0 for none.

    Returns:
        (logprob [n] fp32, top_values [n, top_k] fp32 or None, top_ids [n, top_k] int64 or None), all
        values >= finfo(fp32).min.
    """
    count = logits.shape[0]
    width = min(top_k, logits.shape[1])
    chosen = torch.empty(count, dtype=torch.float32, device=logits.device)
    top_values = torch.empty(count, width, dtype=torch.float32, device=logits.device)
    top_ids = torch.empty(count, width, dtype=torch.int64, device=logits.device)
    for start in range(0, count, _PROMPT_ROWS):
        rows = slice(start, start + _PROMPT_ROWS)
        scores = logits[rows].float()
        # Rows that all begin at multiples of 16 bytes: else CUDA would sum each in an order of its own.
        logprobs = torch.log_softmax(_widened(scores), 1)
        chosen[rows] = logprobs.gather(1, target_ids[rows].unsqueeze(1)).squeeze(1)
        if width:
            top_ids[rows] = top_tokens(scores, width)
            top_values[rows] = logprobs.gather(1, top_ids[rows])
    chosen.clamp_(min=LOWEST)
    if not width:
        return chosen, None, None
    return chosen, top_values.clamp_(min=LOWEST), top_ids
