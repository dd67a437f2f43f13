"""top-k, top-p and min-p: which tokens are kept, and a draw among them.

Tokens are ranked by probability, highest first, equal ones by token id, lowest first. With p the
probabilities of the *whole* row (the joint rule), the token of rank r (from 0) is kept if

    r < top_k,    sum of p over ranks before r <= top_p,    p >= min_p * (highest p).

So the token that crosses top_p is kept, and the first token always is. Each rule keeps a beginning of
the ranking, hence so do all together, and *how many* are kept can be read off the sorted probabilities
alone. That is why the host path sorts values without their ids: the ranks of ties are settled afterwards,
for the one token drawn.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from ..kernels.token_mask import pack_tokens
from .batch import SamplingBatch
from .distributions import NO_CUT, TOP_P_CUT
from .draw import exact_masses
from .stages import Filters

_WHOLE_ROWS = 4  # whole rows are sorted a few at a time, so that their fp64 sums stay in the CPU's cache


class FilteredDraw(NamedTuple):
    """What ``draw_filtered`` chose, per row.

    Attributes:
        token_ids: [R] int64.
        mass: [R] fp64, the probability of the tokens that log-probabilities go by: of those that top-p
            *alone* keeps (``TOP_P_CUT``) or that all filters do (``KEPT_CUT``), else 1.
        size: [R] int64, how many tokens that is; else V.
        kept: [R, ceil(V / 32)] int32, bit ``t % 32`` of word ``t // 32`` says that all filters keep token
            ``t``; None if nobody wants it.
    """

    token_ids: torch.Tensor
    mass: torch.Tensor
    size: torch.Tensor
    kept: torch.Tensor | None = None


def nucleus(batch: SamplingBatch, filtered: FilteredDraw) -> tuple[torch.Tensor, torch.Tensor]:
    """Mass [B] fp64 and number [B] int64 of the tokens that log-probabilities go by, for a whole batch."""
    device = filtered.mass.device
    mass = torch.ones(batch.size, dtype=torch.float64, device=device)
    count = torch.full((batch.size,), batch.vocab_size, dtype=torch.int64, device=device)
    batch.filtered_in_batch.put(mass, filtered.mass)
    batch.filtered_in_batch.put(count, filtered.size)
    return mass, count


class _Choice(NamedTuple):
    """A draw in terms of ranks, all [R, 1]; not ``complete`` if the cut is beyond the ranks looked at."""

    rank: torch.Tensor
    kept_count: torch.Tensor
    mass: torch.Tensor
    size: torch.Tensor
    complete: torch.Tensor


def draw_filtered(probs: torch.Tensor, uniform: torch.Tensor, filters: Filters) -> FilteredDraw:
    """Draw one token per row among those that the filters keep, in proportion to their probabilities.

    Args:
        probs: [R, V] fp32, each row a distribution.
        uniform: [R] fp64 in [0, 1 - 2**-53].
        filters: the rules of these rows.
    """
    if probs.device.type == "cpu":
        return _draw_on_host(probs, uniform, filters)
    return draw_by_sorting(probs, uniform, filters)


def draw_by_sorting(probs: torch.Tensor, uniform: torch.Tensor, filters: Filters) -> FilteredDraw:
    """``draw_filtered`` by sorting whole rows, ids included: no host sync, but slow on a CPU."""
    values, order = torch.sort(probs, dim=1, descending=True, stable=True)
    choice = _choose_rank(values, uniform, filters)
    kept = None
    if filters.wants_kept:
        ranks = torch.arange(probs.shape[1], dtype=torch.int64, device=probs.device)
        kept = torch.zeros_like(probs, dtype=torch.bool).scatter_(1, order, ranks < choice.kept_count)
    return _result(order.gather(1, choice.rank), choice, filters, kept, probs.shape[1])


def _result(
    token_ids: torch.Tensor, choice: _Choice, filters: Filters, kept: torch.Tensor | None, vocab: int
) -> FilteredDraw:
    off = filters.cut == NO_CUT
    mass = choice.mass.masked_fill(off, 1.0)
    size = choice.size.masked_fill(off, vocab)
    words = None if kept is None else pack_tokens(kept)
    return FilteredDraw(token_ids.squeeze(1), mass.squeeze(1), size.squeeze(1), words)


def _choose_rank(values: torch.Tensor, uniform: torch.Tensor, filters: Filters) -> _Choice:
    """Apply the rules to ``values`` [R, C] fp32, the C highest probabilities in descending order."""
    width = values.shape[1]
    masses = exact_masses(values)
    running = masses.cumsum(1)
    # The sum before rank r is running[r - 1]; all sums are exact, so they never decrease and can be searched.
    nucleus_count = (torch.searchsorted(running, filters.top_p, right=True) + 1).clamp_(max=width)
    kept_count = torch.minimum(nucleus_count, filters.top_k)
    if filters.any_min_p:
        likely = (masses >= filters.min_p * masses[:, :1]).sum(1, keepdim=True)
        kept_count = torch.minimum(kept_count, likely.clamp_(min=1))  # 0 only in a row of NaN

    total = running.gather(1, kept_count - 1)
    # uniform <= 1 - 2**-53, so the product is below total even after rounding: the rank found is a kept one,
    # and the sum grows there, so it has mass. Only a row of NaN needs the clamp.
    rank = torch.searchsorted(running, uniform.unsqueeze(1) * total, right=True).clamp_(max=width - 1)

    by_top_p = filters.cut == TOP_P_CUT
    complete = (kept_count < width) | (filters.top_k <= width)
    complete &= (nucleus_count < width) | ~by_top_p
    size = torch.where(by_top_p, nucleus_count, kept_count)
    return _Choice(rank, kept_count, running.gather(1, size - 1), size, complete)


def _draw_on_host(probs: torch.Tensor, uniform: torch.Tensor, filters: Filters) -> FilteredDraw:
    """Look at the ``filters.head`` highest probabilities; sort whole rows only where the cut lies beyond."""
    vocab = probs.shape[1]
    values = _highest(probs, filters.head)
    choice = _choose_rank(values, uniform, filters)
    kept = None
    if filters.wants_kept:
        last = choice.kept_count - 1
        lowest, last_id = values.gather(1, last), _ids_at_rank(probs, values, last)
        ids = torch.arange(vocab, dtype=torch.int64, device=probs.device)
        kept = (probs > lowest) | ((probs == lowest) & (ids <= last_id))
    result = _result(_ids_at_rank(probs, values, choice.rank), choice, filters, kept, vocab)
    if filters.head < vocab and not bool(choice.complete.all()):
        rest = (~choice.complete).squeeze(1).nonzero().squeeze(1)
        for few in rest.split(_WHOLE_ROWS):
            whole = _draw_on_host(probs[few], uniform[few], filters.take(few, head=vocab))
            for target, found in zip(result, whole):
                if target is not None and found is not None:
                    target[few] = found
    return result


def _highest(probs: torch.Tensor, count: int) -> torch.Tensor:
    """The ``count`` highest values of each row, descending. numpy's vector sort is 10 x torch's on a CPU."""
    values = probs.numpy()
    if count < values.shape[1]:
        values = np.partition(values, values.shape[1] - count, axis=1)[:, -count:]
    return torch.from_numpy(np.sort(values, axis=1)[:, ::-1].copy())


def _ids_at_rank(probs: torch.Tensor, values: torch.Tensor, rank: torch.Tensor) -> torch.Tensor:
    """Token ids [R, 1] at ``rank`` [R, 1] of the ranking whose sorted ``values`` [R, C] are given."""
    value = values.gather(1, rank)
    tie = (rank - (values > value).sum(1, keepdim=True)).numpy()[:, 0]  # the how-many-th of its equals
    num_rows, vocab = probs.shape
    row, token = np.divmod(np.flatnonzero(probs.numpy() == value.numpy()), vocab)
    first = np.searchsorted(row, np.arange(num_rows + 1))
    at = first[:-1] + tie
    found = np.zeros(num_rows, dtype=np.int64)
    exists = at < first[1:]  # a row of NaN has no equals and yields token 0
    found[exists] = token[at[exists]]
    return torch.from_numpy(found).unsqueeze(1)
