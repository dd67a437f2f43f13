"""The sampler's stages on Triton kernels: same meaning as their torch counterparts, no host syncs.

Every shape and every decision of the host comes from ``SamplingBatch``; what depends on the logits is decided
by the kernels. Imported only where these kernels are used.
"""

from __future__ import annotations

import torch

from ..kernels.gpu import sample_edits
from ..kernels.gpu.sample_edits import mask_disallowed
from ..kernels.gpu.sample_filtered import draw_filtered, softmax_rows
from ..kernels.gpu.sample_logprobs import rank_tokens, score_tokens
from ..kernels.gpu.sampling import RowDraw, draw_rows
from .batch import SamplingBatch
from .filters import FilteredDraw, nucleus
from .logprobs import top_tokens
from .scratch import Scratch
from .stages import Penalties

__all__ = ["apply_penalties", "draw", "logprobs", "mask_disallowed"]

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
                filters.top_p_logprobs[some],
            )
        )
    filtered = FilteredDraw(*(torch.cat(part) if len(part) > 1 else part[0] for part in zip(*parts)))
    rows.put(found.token_ids, filtered.token_ids)
    return found, filtered


def _softmax(logits: torch.Tensor, batch: SamplingBatch, found: RowDraw, some: slice) -> torch.Tensor:
    """Probabilities of some of the filtered rows."""
    index = batch.filtered_in_batch.index
    if index is not None:
        return softmax_rows(logits, index[some], batch.temperature, found.highest, found.total)
    return softmax_rows(logits[some], None, batch.temperature[some], found.highest[some], found.total[some])


def logprobs(
    logits: torch.Tensor, batch: SamplingBatch, found: RowDraw, filtered: FilteredDraw | None
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """As ``logprobs.sampled_logprobs``, of the rows that ask, without another pass over all probabilities.

    ``logits`` [B, V] are those of all rows.
    """
    rows, width = batch.logprobs, batch.top_logprobs
    ids = None
    if width > _RANKED:
        ids = top_tokens(rows.take(logits), width)
    elif width:
        ids = rank_tokens(logits, rows.index, width)
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
