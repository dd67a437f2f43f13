"""Merging attention over parts of a context: partial results weighted by their log-sum-exp.

FlashInfer's recursive attention states (arXiv:2501.01005, 2.2), flash-decoding's last step.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .jit import jit


class Partials(NamedTuple):
    """Attention of B rows over S parts of their contexts each; contiguous, fp32.

    A part that saw no key has lse -inf, and then its ``out`` is never read.
    """

    out: torch.Tensor  # [B, Hq, S, D]
    lse: torch.Tensor  # [B, Hq, S]: log2 of the sum of exp2(scores in log2 units)


def empty_partials(rows: int, num_q_heads: int, splits: int, head_dim: int, device: torch.device) -> Partials:
    """Return uninitialised partials for that many rows and parts."""
    out = torch.empty(rows, num_q_heads, splits, head_dim, dtype=torch.float32, device=device)
    return Partials(out, torch.empty(rows, num_q_heads, splits, dtype=torch.float32, device=device))


def check_partials(partials: Partials, rows: int, num_q_heads: int, head_dim: int, end: int) -> None:
    """Raise ValueError unless ``partials`` has room for these rows and for the parts before ``end``."""
    out, lse = partials
    shape = tuple(out.shape)
    fits = len(shape) == 4 and shape[0] >= rows and shape[1] == num_q_heads and shape[3] == head_dim
    if not fits or shape[2] < end or tuple(lse.shape) != shape[:3]:
        raise ValueError(
            f"partials are {list(shape)} and {list(lse.shape)}; they must be [B, Hq, S, D] and [B, Hq, S]"
            f" with B >= {rows}, Hq = {num_q_heads}, S >= {end}, D = {head_dim}: see empty_partials."
        )
    if not (out.dtype == lse.dtype == torch.float32 and out.is_contiguous() and lse.is_contiguous()):
        raise ValueError(f"partials must be contiguous float32, got {out.dtype} and {lse.dtype}.")


def merge_states(
    partials: Partials,
    out: torch.Tensor,
    *,
    num_splits: int,
    kv_starts: torch.Tensor | None = None,
    first_split: int = 0,
    num_warps: int = 4,
    pdl: bool = False,
) -> torch.Tensor:
    """Write the merged parts ``[0, first_split + num_splits)`` of each row to out ``[B, Hq, D]``; return it.

    Where ``kv_starts`` ``[B]`` int32 is 0 the parts before ``first_split`` are ignored: nothing wrote them.
    Rows without any key become zeros. With ``pdl`` the launch may begin before the kernel ahead of it has
    ended, which must not write kv_starts. Raises ValueError if the shapes do not fit.
    """
    rows, num_q_heads, head_dim = out.shape
    check_partials(partials, rows, num_q_heads, head_dim, first_split + num_splits)
    if rows == 0:
        return out
    end = first_split + num_splits
    # few kernels for all numbers; a loop over blocks would cost a single row a microsecond
    block = 32 if end <= 32 else 64
    _merge_kernel[(num_q_heads, rows)](
        out,
        partials.out,
        partials.lse,
        partials.lse if kv_starts is None else kv_starts,
        out.stride(0),
        out.stride(1),
        partials.out.shape[2],
        end,
        first_split,
        HAS_STARTS=kv_starts is not None,
        HEAD_DIM=head_dim,
        BLOCK_D=triton.next_power_of_2(head_dim),
        BLOCK_S=block,
        BLOCKS=triton.cdiv(end, block),
        PDL=pdl,
        num_warps=num_warps,
        **({"launch_pdl": True} if pdl else {}),
    )
    return out


def merge_states_reference(
    partials: Partials,
    out: torch.Tensor,
    *,
    num_splits: int,
    kv_starts: torch.Tensor | None = None,
    first_split: int = 0,
) -> torch.Tensor:
    """Compute :func:`merge_states` in torch."""
    rows, end = len(out), first_split + num_splits
    lse = partials.lse[:rows, :, :end].clone()
    if kv_starts is not None:
        lse[kv_starts == 0, :, :first_split] = float("-inf")
    seen = lse != float("-inf")
    top = lse.masked_fill(~seen, -1e30).amax(dim=2, keepdim=True)
    weights = torch.where(seen, torch.exp2(lse - top), 0.0)
    weights = weights / weights.sum(dim=2, keepdim=True).clamp_min(1e-30)
    parts = torch.where(seen[..., None], partials.out[:rows, :, :end], 0.0)
    return out.copy_((weights[..., None] * parts).sum(dim=2))


@jit(do_not_specialize=["stride_split", "end", "first"], do_not_specialize_on_alignment=["kv_starts", "lses"])
def _merge_kernel(
    out,
    parts,
    lses,
    kv_starts,  # read if HAS_STARTS
    out_stride_row,
    out_stride_head,
    stride_split,
    end,
    first,
    HAS_STARTS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCKS: tl.constexpr,
    PDL: tl.constexpr,
):
    head = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    splits = tl.arange(0, BLOCK_S)
    dims = tl.arange(0, BLOCK_D)
    base = (row * tl.num_programs(0) + head) * stride_split
    begin = 0
    if HAS_STARTS:
        begin = tl.where(tl.load(kv_starts + row) > 0, 0, first)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    top = tl.full([], -1e30, tl.float32)
    total = tl.full([], 0.0, tl.float32)
    merged = tl.zeros([BLOCK_D], tl.float32)
    for block in tl.static_range(BLOCKS):
        split = block * BLOCK_S + splits
        lse = tl.load(lses + base + split, mask=(split >= begin) & (split < end), other=float("-inf"))
        seen = lse != float("-inf")
        places = (base + split)[:, None] * HEAD_DIM + dims[None, :]
        part = tl.load(parts + places, mask=seen[:, None] & (dims < HEAD_DIM)[None, :], other=0.0)
        higher = tl.maximum(top, tl.max(lse, 0))
        weights = tl.exp2(lse - higher)
        shrink = tl.exp2(top - higher)
        total = total * shrink + tl.sum(weights, 0)
        merged = merged * shrink + tl.sum(part * weights[:, None], 0)
        top = higher
    merged = merged / tl.where(total > 0, total, 1.0)
    place = row * out_stride_row + head * out_stride_head + dims
    tl.store(out + place, merged.to(out.dtype.element_ty), mask=dims < HEAD_DIM)
