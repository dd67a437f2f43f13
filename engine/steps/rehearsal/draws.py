"""The ways to draw a token that requests can ask for. A new option of the sampler gets its line here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ....cache.slot_pool import PADDING_SLOT
from ....kernels.gpu.step_inputs import store_tokens
from ....sampling.batch import SamplingBatch
from ....sampling.params import SamplingParams
from ....sampling.rows import SamplingRow
from ....sampling.sampler import Sampler

_IN_KERNELS: tuple[dict[str, Any], ...] = (
    {"top_p": 0.5, "top_k": 2, "min_p": 0.1},
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"frequency_penalty": 0.5, "presence_penalty": 0.5, "repetition_penalty": 1.5},
    {"regex": "a"},
)
_IN_TORCH: tuple[dict[str, Any], ...] = (
    {"logit_bias": {0: 1.0}},
    {"min_new_tokens": 1},
)
_WANTED: tuple[dict[str, Any], ...] = (
    {},
    {"logprobs": True},
    {"logprobs": True, "top_logprobs": 2},
    {"logprobs": True, "logprobs_of": "raw"},
    {"sampling_mask": True},
)


def draw_in_all_ways(
    sampler: Sampler, tokens: torch.Tensor, logits_of: Callable[[int], torch.Tensor]
) -> None:
    """Draw tokens in every way, with and without a grammar's mask, for the padding row of ``tokens`` [S, C].

    ``logits_of``: makes logits [R, V] of so many rows, on the device of ``tokens``.
    """
    device, vocab_size = tokens.device, sampler.vocab_size
    for rows in _ways(in_kernels=device.type == "meta"):
        logits, batch = logits_of(len(rows)), SamplingBatch.build(rows, vocab_size, device)
        slots = torch.zeros(len(rows), dtype=torch.int32, device=device)
        places = torch.zeros(len(rows), dtype=torch.int64, device=device)
        words = (len(rows), -(-vocab_size // 32))
        for mask in (None, torch.zeros(words, dtype=torch.int32, device=device)):
            sampled = sampler.sample(logits, batch, places, tokens, mask)
            store_tokens(tokens, slots, places, sampled.token_ids)


def draw_without_model(vocab_size: int, device: torch.device) -> None:
    """The same from logits of zeros."""
    tokens = torch.zeros((1, 1), dtype=torch.int32, device=device)
    draw_in_all_ways(
        Sampler(vocab_size, device, fused=True),
        tokens,
        lambda count: torch.zeros((count, vocab_size), dtype=torch.float32, device=device),
    )


def _ways(*, in_kernels: bool) -> list[list[SamplingRow]]:
    """Batches of rows of padding: every way by itself, then all of them in one.

    ``in_kernels``: only those that have kernels of their own, and no batch of several ways: the same
    kernels do it, and what torch does around them needs tensors with memory, or takes seconds to load.
    """
    options = _IN_KERNELS if in_kernels else _IN_KERNELS + _IN_TORCH
    rows = [_row(way, wanted) for way in options for wanted in _WANTED]
    if in_kernels:
        return [[row] for row in rows if not (row.masked and row.params.top_k > 0)]
    return [*([row] for row in rows), rows]


def _row(way: dict[str, Any], wanted: dict[str, Any]) -> SamplingRow:
    params = SamplingParams(max_new_tokens=2, **way)
    ends = (0,) if params.min_new_tokens else ()
    return SamplingRow(params, 0, PADDING_SLOT, prompt_len=1, banned_until_min=ends, **wanted)
