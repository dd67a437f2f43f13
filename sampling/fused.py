"""The sampler's stages on Triton kernels: same meaning as their torch counterparts, no host syncs.

Every shape and every decision of the host comes from ``SamplingBatch``; what depends on the logits is decided
by the kernels. Imported only where these kernels are used.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..kernels.gpu import sample_edits
from ..kernels.gpu.sample_edits import mask_disallowed
from ..kernels.gpu.sample_filtered import draw_filtered, softmax_rows
from ..kernels.gpu.sample_kept import pack_allowed
from ..kernels.gpu.sample_logprobs import rank_tokens, score_tokens
from ..kernels.gpu.sampling import RowDraw, draw_rows
from .batch import GREEDY_WITH_TOTAL, SamplingBatch
from .filters import FilteredDraw, nucleus
from .logprobs import TokenLogprobs, top_tokens
from .rows import Rows
from .scratch import Scratch
from .stages import ModelLogprobs, Penalties

__all__ = ["apply_penalties", "draw", "logprobs", "mask_disallowed", "model_logprobs", "pack_allowed"]

_RANKED = 256  # longer lists are sorted; ranking costs a few microseconds a token
_FILTERED_ROWS = 256  # rows filtered at once: three [256, V] tensors of 4 bytes are all the memory it takes


def apply_penalties(
    logits: torch.Tensor,
    penalties: Penalties,
    positions: torch.Tensor,
    tokens: torch.Tensor,
    scratch: Scratch,
) -> None:
    """As ``penalties.apply_penalties``; reads no more of the token table than the rows are long."""
    sample_edits.apply_penalties(
        logits,
        penalties.rows.index,
        penalties.slots,
        penalties.prompt_lens,
        penalties.frequency,
        penalties.presence,
        penalties.repetition,
        positions,
        tokens,
        marks=scratch.get("marks", (penalties.rows.count, logits.shape[1]), torch.int32),
    )


def draw(
    logits: torch.Tensor, batch: SamplingBatch, positions: torch.Tensor
) -> tuple[RowDraw, FilteredDraw | None]:
    """Choose every row's token; ``token_ids`` of the first result is complete.

    Args:
        logits: [B, V] bf16, fp16 or fp32, edits already made.
        batch: the rows' parameters.
        positions: [B] int64.
    """
    found = draw_rows(logits, batch.temperature, batch.kinds, batch.keys, positions)
    filters, rows = batch.filters, batch.filtered_in_batch
    if filters is None:
        return found, None
    uniform = rows.take(found.uniform)
    parts = []
    for start in range(0, rows.count, _FILTERED_ROWS):
        some = slice(start, min(start + _FILTERED_ROWS, rows.count))
        probs = _softmax(logits, batch, found, some)
        parts.append(
            draw_filtered(
                probs,
                uniform[some],
                filters.top_k[some],
                filters.top_p[some],
                filters.min_p[some],
                filters.cut[some],
                want_kept=filters.wants_kept,
            )
        )
    token_ids, mass, size, kept = zip(*parts)
    packed = [words for words in kept if words is not None]
    filtered = FilteredDraw(
        _joined(token_ids), _joined(mass), _joined(size), _joined(packed) if packed else None
    )
    rows.put(found.token_ids, filtered.token_ids)
    return found, filtered


def _joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat(tuple(parts)) if len(parts) > 1 else parts[0]


def _softmax(logits: torch.Tensor, batch: SamplingBatch, found: RowDraw, some: slice) -> torch.Tensor:
    """Probabilities of some of the filtered rows."""
    index = batch.filtered_in_batch.index
    if index is not None:
        return softmax_rows(logits, index[some], batch.temperature, found.highest, found.total)
    return softmax_rows(logits[some], None, batch.temperature[some], found.highest[some], found.total[some])


def logprobs(
    logits: torch.Tensor, batch: SamplingBatch, found: RowDraw, filtered: FilteredDraw | None
) -> TokenLogprobs:
    """As ``logprobs.sampled_logprobs``, of the rows that ask, without another pass over all probabilities.

    ``logits`` [B, V] are those of all rows.
    """
    rows = batch.logprobs
    ids = _ranked(logits, rows, batch.top_logprobs)
    chosen, values = score_tokens(
        logits,
        rows.index,
        batch.temperature,
        found.highest,
        found.total,
        found.token_ids,
        None if filtered is None else nucleus(batch, filtered),
        ids,
    )
    return chosen, values, ids


def model_logprobs(
    logits: torch.Tensor,
    batch: SamplingBatch,
    asked: ModelLogprobs,
    token_ids: torch.Tensor,
    found: RowDraw | None,
) -> TokenLogprobs:
    """Those of the rows that go by the model's own ``logits`` [B, V], whose drawn ``token_ids`` are [B].

    ``found``: what drawing from these very logits summed up; where the temperature is that of the draw as
    well, no other pass is needed.
    """
    ids = _ranked(logits, asked.rows, asked.top)
    if found is not None and asked.as_drawn:
        index, temperature, highest, total = asked.rows.index, batch.temperature, found.highest, found.total
    else:
        # integers: the same sums, to the bit, as those of a draw at this temperature
        index, temperature = None, asked.temperature
        logits, token_ids = asked.rows.take(logits), asked.rows.take(token_ids)
        zeros = torch.zeros(asked.rows.count, dtype=torch.int64, device=logits.device)
        kinds = torch.full(zeros.shape, GREEDY_WITH_TOTAL, dtype=torch.int32, device=logits.device)
        _, highest, total, *_ = draw_rows(logits, temperature, kinds, zeros, zeros)
    chosen, values = score_tokens(logits, index, temperature, highest, total, token_ids, None, ids)
    return chosen, values, ids


def _ranked(logits: torch.Tensor, rows: Rows, width: int) -> torch.Tensor | None:
    """Ids [R, width] of the highest logits of some rows of [B, V]; None if ``width`` is 0."""
    if width > _RANKED:
        return top_tokens(rows.take(logits), width)
    return rank_tokens(logits, rows.index, width) if width else None
