"""Attention of many rows' queries to a prefix that they share, which is read once for all of them.

Cascade attention as in Hydragen (arXiv:2402.05099): the result is partial and is merged by its log-sum-exp
with each row's own suffix in ``decode_attention``.
"""

from __future__ import annotations

from typing import Final

import torch
import triton
import triton.language as tl

from ..scoring import Scoring, check_scoring
from .attention_checks import cache_descriptor, can_use_tma, check_caches, check_int32, dot_type
from .attention_tiles import LOG2_E, attend_tiles, finish_state, start_state
from .jit import jit
from .merge_states import Partials, check_partials

CAN: Final = frozenset({"soft_cap"})
"""Fields of a :class:`Scoring` that the kernel knows: a window leaves prefixes behind."""


def rows_per_tile(num_q_heads: int, num_kv_heads: int, block_m: int = 128) -> int:
    """Return how many batch rows one tile of block_m queries holds."""
    return max(1, block_m // (num_q_heads // num_kv_heads))


def num_prefix_splits(num_tiles: int, num_kv_heads: int, num_sms: int = 132) -> int:
    """Return how many parts a shared prefix is cut into, so that there is about one program for every SM."""
    splits = 1
    while splits < 32 and 2 * splits * num_tiles * num_kv_heads <= 2 * num_sms:
        splits *= 2
    return splits


def prefix_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    pages: torch.Tensor,
    slots: torch.Tensor,
    tile_rows: torch.Tensor,
    tile_lens: torch.Tensor,
    scoring: Scoring,
    *,
    partials: Partials,
    first_split: int = 0,
    num_splits: int,
    block_n: int | None = None,
    num_warps: int = 8,
    num_stages: int | None = None,
    use_tma: bool | None = None,
) -> None:
    """Attend q ``[B, Hq, D]`` of grouped rows to their shared prefixes, into ``partials``.

    ``tile_rows`` ``[G, R]`` int32 names the batch rows of each tile (-1: none; the first is a row unless the
    tile is unused), ``tile_lens`` ``[G]`` int32 the shared tokens, a multiple of page_size in the first pages
    of the tile's first row; 0 is an unused tile. Every row sees every one of these keys. Results go to the
    parts ``first_split .. first_split + num_splits - 1`` of the rows named; others are not touched. Caches,
    pages and slots are those of ``decode_attention``. Raises ValueError for arguments that do not fit.
    """
    rows, num_q_heads, head_dim = q.shape
    group = check_caches(q, k_cache, v_cache, pages, scoring.scale)
    check_scoring(scoring, CAN, num_q_heads, "prefix_attention")
    check_int32(rows, slots=slots)
    _, page_size, num_kv_heads, _ = k_cache.shape
    if tile_rows.dim() != 2 or tile_rows.dtype is not torch.int32 or not tile_rows.is_contiguous():
        raise ValueError(
            f"tile_rows is {list(tile_rows.shape)} {tile_rows.dtype}; it must be [G, R] int32, contiguous."
        )
    num_tiles, tile_size = tile_rows.shape
    check_int32(num_tiles, tile_lens=tile_lens)
    if num_splits < 1 or first_split < 0:
        raise ValueError(f"num_splits is {num_splits}, first_split {first_split}; allowed: from 1, from 0.")
    check_partials(partials, rows, num_q_heads, head_dim, first_split + num_splits)
    if rows == 0 or num_tiles == 0:
        return
    if block_n is None:
        block_n = (128 if page_size >= 128 else 64) if head_dim * q.element_size() <= 256 else 32
    if num_stages is None:
        num_stages = 2 if block_n > 64 else 3
    use_tma = (page_size >= 64 if use_tma is None else use_tma) and q.element_size() == 2
    use_tma = use_tma and can_use_tma(k_cache, block_n) and can_use_tma(v_cache, block_n)
    _prefix_kernel[(num_kv_heads, num_tiles, num_splits)](
        partials.out,
        partials.lse,
        q,
        k_cache,
        v_cache,
        cache_descriptor(k_cache, block_n) if use_tma else k_cache,
        cache_descriptor(v_cache, block_n) if use_tma else v_cache,
        pages,
        slots,
        tile_rows,
        tile_lens,
        q.stride(0),
        q.stride(1),
        pages.stride(0),
        partials.out.shape[2],
        first_split,
        scoring.scale * LOG2_E,
        KV_HEADS=num_kv_heads,
        GROUP=group,
        ROWS=tile_size,
        BLOCK_M=max(16, triton.next_power_of_2(tile_size * group)),
        PAGE_SIZE=page_size,
        HEAD_DIM=head_dim,
        BLOCK_D=max(16, triton.next_power_of_2(head_dim)),
        BLOCK_N=block_n,
        SOFT_CAP=scoring.soft_cap or 0.0,
        USE_TMA=use_tma,
        DOT=dot_type(q),
        num_warps=num_warps,
        num_stages=num_stages,
    )


@jit(
    do_not_specialize=["table_stride", "stride_split", "first_split"],
    do_not_specialize_on_alignment=["pages", "slots", "tile_rows", "tile_lens", "lses"],
)
def _prefix_kernel(
    parts,
    lses,
    q,
    k_cache,
    v_cache,
    k_desc,
    v_desc,
    pages,
    slots,
    tile_rows,
    tile_lens,
    q_stride_row,
    q_stride_head,
    table_stride,
    stride_split,
    first_split,
    score_scale,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    USE_TMA: tl.constexpr,
    DOT: tl.constexpr,
):
    kv_head = tl.program_id(0)
    tile = tl.program_id(1)
    split = tl.program_id(2)
    length = tl.load(tile_lens + tile)
    if length == 0:
        return
    leader = tl.load(tile_rows + tile * ROWS)
    table = pages + tl.load(slots + leader).to(tl.int64) * table_stride

    queries = tl.arange(0, BLOCK_M)
    dims = tl.arange(0, BLOCK_D)
    member = queries // GROUP
    rows = tl.load(tile_rows + tile * ROWS + member, mask=member < ROWS, other=-1).to(tl.int64)
    valid = rows >= 0
    real = valid[:, None] & (dims < HEAD_DIM)[None, :]
    heads = kv_head * GROUP + queries % GROUP
    places = (rows * q_stride_row + heads * q_stride_head)[:, None] + dims[None, :]
    tile_q = tl.load(q + places, mask=real, other=0.0).to(DOT)

    num_tiles = tl.cdiv(length, BLOCK_N)
    begin = num_tiles * split // tl.num_programs(2)
    end = num_tiles * (split + 1) // tl.num_programs(2)
    inner = tl.maximum(tl.minimum(end, length // BLOCK_N), begin)
    acc, row_max, row_sum = start_state(BLOCK_M, BLOCK_D)
    acc, row_max, row_sum = attend_tiles(
        acc, row_max, row_sum, tile_q, k_cache, v_cache, k_desc, v_desc, table, kv_head, queries,
        begin, inner, 0, length, score_scale, PAGE_SIZE, KV_HEADS, HEAD_DIM, BLOCK_D, BLOCK_N,
        False, False, 0, SOFT_CAP, USE_TMA, DOT,
    )  # fmt: skip
    if PAGE_SIZE % BLOCK_N != 0:  # else whole pages are whole tiles
        acc, row_max, row_sum = attend_tiles(
            acc, row_max, row_sum, tile_q, k_cache, v_cache, k_desc, v_desc, table, kv_head, queries,
            inner, end, 0, length, score_scale, PAGE_SIZE, KV_HEADS, HEAD_DIM, BLOCK_D, BLOCK_N,
            True, False, 0, SOFT_CAP, False, DOT,
        )  # fmt: skip
    result, lse = finish_state(acc, row_max, row_sum)
    part = (rows * (KV_HEADS * GROUP) + heads) * stride_split + first_split + split
    tl.store(lses + part, lse, mask=valid)
    tl.store(parts + part[:, None] * HEAD_DIM + dims[None, :], result, mask=real & (row_sum != 0)[:, None])
