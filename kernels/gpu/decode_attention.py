"""Paged attention of one query token per row: a kv head's group of q heads in one program, split over keys.

Split-KV as in flash-decoding: each split takes an equal share of the row's own length, read on the device, so
that a captured CUDA graph stays balanced as contexts grow.
"""

from __future__ import annotations

from typing import Final

import torch
import triton
import triton.language as tl

from ..scoring import Scoring, check_scoring
from .attention_checks import check_caches, check_int32, dot_type
from .attention_tiles import LOG2_E, attend_tiles, finish_state, start_state
from .jit import jit
from .merge_states import Partials, check_partials, empty_partials, merge_states

CAN: Final = frozenset({"window", "soft_cap"})
"""Fields of a :class:`Scoring` that the kernel knows."""


def num_decode_splits(batch_size: int, num_kv_heads: int, num_sms: int = 132) -> int:
    """Return how many parts each context is cut into, so that about two programs are there for every SM.

    A power of two from 1 to 64; 1 as soon as the rows alone fill the card. It depends on shapes only, so it
    is fixed when a graph is captured; short contexts leave some splits empty, which costs next to nothing.
    """
    splits = 1
    while splits < 64 and 2 * splits * batch_size * num_kv_heads <= 2 * num_sms:
        splits *= 2
    return splits


def decode_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    pages: torch.Tensor,
    slots: torch.Tensor,
    kv_lens: torch.Tensor,
    scoring: Scoring,
    *,
    num_splits: int,
    kv_starts: torch.Tensor | None = None,
    partials: Partials | None = None,
    first_split: int = 0,
    out: torch.Tensor | None = None,
    block_n: int | None = None,
    num_warps: int = 4,
    num_stages: int = 3,
    pdl: bool = False,
) -> torch.Tensor:
    """Return ``softmax(scale * q k^T) v`` ``[B, Hq, D]`` of the rows' last tokens q ``[B, Hq, D]``.

    The caches are ``[num_pages, page_size, Hkv, D]`` of q's dtype. Row b's context is ``kv_lens[b]`` tokens
    (int32; its own K and V are in the cache already), in the pages ``pages[slots[b], :]``; length 0 is a
    padding row and gives zeros. ``kv_starts[b]``, where given, is the first key to attend to.

    With ``first_split`` of n above 0 the first n entries of ``partials`` hold attention over the keys before
    ``kv_starts`` (from ``prefix_attention``); they are merged into the result for rows whose start is not 0.
    ``num_splits`` > 1 needs partials of ``first_split + num_splits`` parts, made here if they are None.
    A window of w sees the last w keys; it goes with no shared prefix. With ``pdl`` the launch may begin
    before the kernel ahead of it has ended, which must not write pages, slots, kv_lens or kv_starts.
    ``block_n``, ``num_warps`` and ``num_stages`` tune; results differ by rounding only. Raises ValueError for
    arguments that do not fit together.
    """
    rows, num_q_heads, head_dim = q.shape
    group = check_caches(q, k_cache, v_cache, pages, scoring.scale)
    check_scoring(scoring, CAN, num_q_heads, "decode_attention")
    check_int32(rows, slots=slots, kv_lens=kv_lens, kv_starts=kv_starts)
    _, page_size, num_kv_heads, _ = k_cache.shape
    if num_splits < 1 or first_split < 0 or (scoring.window is not None and first_split):
        raise ValueError(
            f"num_splits is {num_splits}, first_split {first_split}, window {scoring.window}; allowed are at"
            " least 1, at least 0, and no window together with a first_split."
        )
    if first_split and (kv_starts is None or partials is None):
        raise ValueError(
            f"first_split is {first_split}: pass the kv_starts and partials of prefix_attention."
        )
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device) if out is None else out
    if rows == 0:
        return out
    if num_splits > 1 and partials is None:
        partials = empty_partials(rows, num_q_heads, num_splits, head_dim, q.device)
    if partials is not None:
        used = first_split + (num_splits if num_splits > 1 else 0)
        check_partials(partials, rows, num_q_heads, head_dim, used)
    if block_n is None:
        block_n = 64 if head_dim * q.element_size() <= 256 else 32
    _decode_kernel[(num_kv_heads, rows, num_splits)](
        out,
        q if partials is None else partials.out,
        q if partials is None else partials.lse,
        q,
        k_cache,
        v_cache,
        pages,
        slots,
        kv_lens,
        kv_lens if kv_starts is None else kv_starts,
        q.stride(0),
        q.stride(1),
        out.stride(0),
        out.stride(1),
        pages.stride(0),
        0 if partials is None else partials.out.shape[2],
        scoring.scale * LOG2_E,
        first_split,
        KV_HEADS=num_kv_heads,
        GROUP=group,
        BLOCK_M=max(16, triton.next_power_of_2(group)),
        PAGE_SIZE=page_size,
        HEAD_DIM=head_dim,
        BLOCK_D=max(16, triton.next_power_of_2(head_dim)),
        BLOCK_N=block_n,
        WINDOW=scoring.window or 0,
        SOFT_CAP=scoring.soft_cap or 0.0,
        HAS_STARTS=kv_starts is not None,
        HAS_PREFIX=first_split > 0,
        SPLIT=num_splits > 1,
        DOT=dot_type(q),
        PDL=pdl,
        num_warps=num_warps,
        num_stages=num_stages,
        **({"launch_pdl": True} if pdl else {}),
    )
    if num_splits > 1 and partials is not None:
        merge_states(
            partials, out, num_splits=num_splits, kv_starts=kv_starts, first_split=first_split, pdl=pdl
        )
    return out


# One compiled kernel for all batches: else a slice's alignment or a count's value would make another.
@jit(
    do_not_specialize=["table_stride", "stride_split", "first_split"],
    do_not_specialize_on_alignment=["pages", "slots", "kv_lens", "kv_starts", "lses"],
)
def _decode_kernel(
    out,
    parts,
    lses,
    q,
    k_cache,
    v_cache,
    pages,
    slots,
    kv_lens,
    kv_starts,
    q_stride_row,
    q_stride_head,
    out_stride_row,
    out_stride_head,
    table_stride,
    stride_split,  # parts of a row in ``parts``
    score_scale,
    first_split,  # parts of a shared prefix, 0 without; not constexpr: its number varies with the groups
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    HAS_STARTS: tl.constexpr,
    HAS_PREFIX: tl.constexpr,
    SPLIT: tl.constexpr,
    DOT: tl.constexpr,
    PDL: tl.constexpr,
):
    kv_head = tl.program_id(0)  # fastest: the heads of a token lie side by side in a page
    row = tl.program_id(1).to(tl.int64)
    split = tl.program_id(2)
    high = tl.load(kv_lens + row)
    table = pages + tl.load(slots + row).to(tl.int64) * table_stride
    low = 0
    if HAS_STARTS:
        low = tl.load(kv_starts + row)
    start = low
    if WINDOW > 0:
        low = tl.maximum(low, high - WINDOW)

    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    members = tl.arange(0, BLOCK_M)
    dims = tl.arange(0, BLOCK_D)
    heads = kv_head * GROUP + members
    real = (members < GROUP)[:, None] & (dims < HEAD_DIM)[None, :]
    places = row * q_stride_row + heads[:, None] * q_stride_head + dims[None, :]
    queries = tl.load(q + places, mask=real, other=0.0).to(DOT)

    first = low // BLOCK_N
    num_tiles = tl.maximum(tl.cdiv(high, BLOCK_N) - first, 0)
    begin = first + num_tiles * split // tl.num_programs(2)
    end = first + num_tiles * (split + 1) // tl.num_programs(2)
    acc, row_max, row_sum = start_state(BLOCK_M, BLOCK_D)
    acc, row_max, row_sum = attend_tiles(
        acc,
        row_max,
        row_sum,
        queries,
        k_cache,
        v_cache,
        k_cache,
        v_cache,
        table,
        kv_head,
        members,
        begin,
        end,
        low,
        high,
        score_scale,
        PAGE_SIZE,
        KV_HEADS,
        HEAD_DIM,
        BLOCK_D,
        BLOCK_N,
        True,
        False,
        0,
        SOFT_CAP,
        False,
        DOT,
    )
    part = (row * (KV_HEADS * GROUP) + heads) * stride_split
    if SPLIT:
        part += first_split + split
        result, lse = finish_state(acc, row_max, row_sum)
        tl.store(lses + part, lse, mask=members < GROUP)
        tl.store(
            parts + part[:, None] * HEAD_DIM + dims[None, :], result, mask=real & (row_sum != 0)[:, None]
        )
    else:
        # A shared prefix is merged here: its partial results are read once and the suffix writes none.
        if HAS_PREFIX:
            for index in range(first_split):
                lse = tl.load(lses + part + index, mask=members < GROUP, other=float("-inf"))
                lse = tl.where(start > 0, lse, float("-inf"))
                seen = lse != float("-inf")
                places = (part + index)[:, None] * HEAD_DIM + dims[None, :]
                prefix = tl.load(parts + places, mask=real & seen[:, None], other=0.0)
                new_max = tl.maximum(row_max, lse)
                shrink = tl.exp2(row_max - new_max)
                weight = tl.exp2(lse - new_max)
                acc = acc * shrink[:, None] + prefix * weight[:, None]
                row_sum = row_sum * shrink + weight
                row_max = new_max
        result, lse = finish_state(acc, row_max, row_sum)
        places = row * out_stride_row + heads[:, None] * out_stride_head + dims[None, :]
        tl.store(out + places, result.to(out.dtype.element_ty), mask=real)
