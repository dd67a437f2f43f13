"""Index of the largest logit of each row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .jit import jit

_PROGRAMS = 1024
"""Programs that fill a large GPU; below that many rows, a row is split over several."""

_MAX_SPLITS = 128

_NOWHERE = tl.constexpr(2**31 - 1)
"""Index of a value that has not been found: loses against every other."""


def argmax(
    logits: torch.Tensor,
    *,
    out: torch.Tensor | None = None,
    splits: int | None = None,
    block: int = 2048,
    num_warps: int = 8,
) -> torch.Tensor:
    """Return the index of the largest value of each row: logits ``[B, V]`` -> ``[B]`` int64.

    logits are of a floating dtype; rows may be strided. The lowest index wins among equals. NaN never
    wins; a row of nothing but NaN gives 0. The result goes to a contiguous ``out`` if given. ``splits``
    (a power of two) is how many programs share a row, chosen by B if None; a program reads ``block``
    columns at a time. Raises ValueError if the shapes, dtypes or strides do not fit or V is 0.
    """
    if logits.dim() != 2 or not logits.is_floating_point() or not 0 < logits.shape[1] < 2**31 - 1:
        raise ValueError(
            f"argmax got logits {list(logits.shape)} {logits.dtype}; it takes floats [B, V], V at least 1."
        )
    rows, size = logits.shape
    if out is None:
        out = torch.empty(rows, dtype=torch.int64, device=logits.device)
    elif out.shape != (rows,) or out.dtype is not torch.int64 or not out.is_contiguous():
        raise ValueError(f"out is {list(out.shape)} {out.dtype}; it must be int64 [{rows}], contiguous.")
    if not rows:
        return out
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    block = min(block, triton.next_power_of_2(size))
    if splits is None:
        splits = min(triton.next_power_of_2(triton.cdiv(_PROGRAMS, rows)), _MAX_SPLITS)
        splits = min(splits, triton.next_power_of_2(triton.cdiv(size, block)))
    # a whole number of blocks each, so that loads stay aligned
    chunk = triton.cdiv(triton.cdiv(size, splits), block) * block
    values = best = None
    if splits > 1:
        values = torch.empty((rows, splits), dtype=torch.float32, device=logits.device)
        best = torch.empty((rows, splits), dtype=torch.int32, device=logits.device)
    _argmax_kernel[(rows * splits,)](
        out,
        values,
        best,
        logits,
        logits.stride(0),
        size,
        chunk,
        splits,
        SPLIT=splits > 1,
        BLOCK=block,
        num_warps=num_warps,
    )
    if splits > 1:
        _join_kernel[(rows,)](out, values, best, splits, BLOCK=max(_MAX_SPLITS, splits), num_warps=1)
    return out


def argmax_reference(logits: torch.Tensor) -> torch.Tensor:
    """Compute :func:`argmax` in torch."""
    usable = ~logits.isnan()
    largest = logits.float().masked_fill(~usable, float("-inf")).amax(dim=-1, keepdim=True)
    return ((logits.float() == largest) & usable).to(torch.int8).argmax(dim=-1)


@triton.jit
def _lowest_of_largest(value, index):
    """The largest value, and the lowest index at which it stands."""
    largest = tl.max(value, axis=0)
    return largest, tl.min(tl.where(value == largest, index, _NOWHERE), axis=0)


# One compiled kernel for all numbers of rows, and one more where a row is not split.
@jit(do_not_specialize=["chunk", "splits"])
def _argmax_kernel(
    out_ptr,
    values_ptr,
    best_ptr,
    logits_ptr,
    stride,
    size,
    chunk,
    splits,
    SPLIT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    row_ptr = logits_ptr + (program // splits).to(tl.int64) * stride
    start = (program % splits) * chunk
    end = tl.minimum(start + chunk, size)
    lane = tl.arange(0, BLOCK)
    value = tl.full([BLOCK], float("-inf"), tl.float32)
    index = tl.full([BLOCK], _NOWHERE, tl.int32)
    column = start + lane
    ahead = tl.load(row_ptr + column, mask=column < end, other=float("nan"))
    for offset in range(0, chunk, BLOCK):
        x = ahead.to(tl.float32)
        column = start + offset + lane
        # the next block is on its way while this one is compared
        following = column + BLOCK
        ahead = tl.load(row_ptr + following, mask=following < end, other=float("nan"))
        # false for NaN; what lies past the end reads as NaN. A first -inf counts, later equals do not
        better = (x > value) | ((x == value) & (index == _NOWHERE))
        value = tl.where(better, x, value)
        index = tl.where(better, column, index)
    largest, lowest = _lowest_of_largest(value, index)
    if SPLIT:
        tl.store(values_ptr + program, largest)
        tl.store(best_ptr + program, lowest)
    else:
        tl.store(out_ptr + program, tl.where(lowest == _NOWHERE, 0, lowest).to(tl.int64))


@jit(do_not_specialize=["splits"])
def _join_kernel(out_ptr, values_ptr, best_ptr, splits, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    part = tl.arange(0, BLOCK)
    place = row * splits + part
    value = tl.load(values_ptr + place, mask=part < splits, other=float("-inf"))
    _, lowest = _lowest_of_largest(value, tl.load(best_ptr + place, mask=part < splits, other=_NOWHERE))
    tl.store(out_ptr + row, tl.where(lowest == _NOWHERE, 0, lowest).to(tl.int64))
