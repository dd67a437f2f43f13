"""What a step changes in the per-slot tables, sent and written at once."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl

from ..upload import upload
from .jit import jit

Run = tuple[int, int, Sequence[int]]
"""``(slot, start, values)``: for columns ``start, start+1, …`` of row ``slot``."""

_HEAD = 4  # int32 before the values, for each run


def write_runs(
    tokens: torch.Tensor,
    pages: torch.Tensor,
    token_runs: Sequence[Run],
    page_runs: Sequence[Run],
    *,
    block: int = 256,
    num_warps: int = 4,
) -> None:
    """Write runs to the table ``tokens`` and others to ``pages``, by one copy to the device and one launch.

    Both tables are int32 ``[slots, columns]`` with contiguous rows, on one device; runs lie inside them and
    do not overlap. The host waits for nothing. Raises ValueError for other tables.
    """
    for table in (tokens, pages):
        if table.dim() != 2 or table.dtype is not torch.int32 or table.stride(1) != 1:
            raise ValueError(
                f"A slot table is int32 [slots, columns] with contiguous rows, not {list(table.shape)}"
                f" {table.dtype}, strides {table.stride()}."
            )
    runs = [*token_runs, *page_runs]
    longest = max((len(values) for _, _, values in runs), default=0)
    if not longest:
        return
    [changes] = upload(tokens.device, np.frombuffer(_packed(runs), dtype=np.int32))
    _write_runs_kernel[(len(runs), triton.cdiv(longest, block))](
        tokens,
        pages,
        changes,
        len(token_runs),
        tokens.stride(0),
        pages.stride(0),
        HEAD=_HEAD,
        BLOCK=block,
        num_warps=num_warps,
    )


def write_runs_reference(
    tokens: torch.Tensor, pages: torch.Tensor, token_runs: Sequence[Run], page_runs: Sequence[Run]
) -> None:
    """Compute :func:`write_runs` in torch."""
    for table, runs in ((tokens, token_runs), (pages, page_runs)):
        for slot, start, values in runs:
            table[slot, start : start + len(values)] = torch.tensor(
                [*values], dtype=torch.int32, device=table.device
            )


def _packed(runs: Sequence[Run]) -> array:
    """Heads (slot, start, place of the first value, place behind the last) of all runs, then all values."""
    heads: list[int] = []
    values = array("i")
    first = _HEAD * len(runs)
    for slot, start, run in runs:
        values.extend(run)
        end = _HEAD * len(runs) + len(values)
        heads += (slot, start, first, end)
        first = end
    return array("i", heads) + values


@jit(do_not_specialize=["num_token_runs", "tokens_stride", "pages_stride"])
def _write_runs_kernel(
    tokens_ptr,
    pages_ptr,
    changes_ptr,
    num_token_runs,
    tokens_stride,
    pages_stride,
    HEAD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    run = tl.program_id(0)
    head_ptr = changes_ptr + run * HEAD
    slot = tl.load(head_ptr).to(tl.int64)
    start, first, end = tl.load(head_ptr + 1), tl.load(head_ptr + 2), tl.load(head_ptr + 3)
    offset = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = first + offset < end
    value = tl.load(changes_ptr + first + offset, mask=inside)
    if run < num_token_runs:
        tl.store(tokens_ptr + slot * tokens_stride + start + offset, value, mask=inside)
    else:
        tl.store(pages_ptr + slot * pages_stride + start + offset, value, mask=inside)
