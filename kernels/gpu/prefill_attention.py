"""Paged causal attention of rows with any number of query tokens behind any prefix.

FlashAttention-2 (arXiv:2307.08691) over page tables. The q heads that share a kv head are packed into one
tile of queries: short chunks and single tokens waste little of it, and the causal diagonal is a narrow band.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl

from ..scoring import Scoring, check_scoring
from .attention_checks import cache_descriptor, can_use_tma, check_caches, check_int32, dot_type
from .attention_tiles import LOG2_E, attend_tiles, finish_state, start_state
from .jit import jit

CAN: Final = frozenset({"window", "soft_cap"})
"""Fields of a :class:`Scoring` that the kernel knows."""


class PrefillConfig(NamedTuple):
    """How a prefill kernel is cut; every choice gives the same result up to rounding."""

    block_m: int  # queries in a tile: tokens times q heads of one kv head
    block_n: int  # keys in a tile
    num_warps: int
    num_stages: int
    use_tma: bool = False  # load whole tiles through tensor descriptors; needs block_n <= page_size
    one_path: bool = False  # mask every tile of keys, needed or not: see invariant_config


def prefill_config(head_dim: int, page_size: int, dtype: torch.dtype) -> PrefillConfig:
    """Return the configuration for an H100, a pure function of what is fixed at start."""
    if dtype.itemsize > 2:  # fp32 is multiplied without tensor cores, exactly
        return PrefillConfig(block_m=16, block_n=32, num_warps=4, num_stages=1)
    if head_dim > 128:
        return PrefillConfig(128, 64, num_warps=8, num_stages=2, use_tma=page_size >= 64)
    if page_size >= 64:
        return PrefillConfig(128, 64, num_warps=4, num_stages=2, use_tma=True)
    return PrefillConfig(128, 64, num_warps=8, num_stages=3)


def invariant_config(head_dim: int, dtype: torch.dtype) -> PrefillConfig:
    """Return a configuration that makes a token's result, to the last bit, one of its own context alone.

    Keys are taken in tiles counted from position 0, in one order, each by the same instructions. Where a
    token stands in its tile, and whether it is computed alone or in a chunk, does not show.
    """
    if dtype.itemsize > 2:
        return PrefillConfig(block_m=16, block_n=32, num_warps=4, num_stages=1, one_path=True)
    return PrefillConfig(64, 64 if head_dim <= 128 else 32, num_warps=4, num_stages=3, one_path=True)


def tile_tokens(block_m: int, num_q_heads: int, num_kv_heads: int) -> int:
    """Return how many tokens of a row make a tile of block_m queries."""
    return block_m // _packed_heads(block_m, num_q_heads, num_kv_heads)


def prefill_tiles(counts: np.ndarray, tokens: int, kv_lens: np.ndarray | None = None) -> np.ndarray:
    """Return the tiles ``[2, NT]`` int32 (row, first q token within it) of rows with ``counts`` q tokens.

    ``tokens`` is :func:`tile_tokens`. The tiles with the most keys come first, so that the last programs to
    run are short; without ``kv_lens`` a row is taken to have no prefix.
    """
    counts = np.asarray(counts, dtype=np.int64)
    per_row = -(-counts // tokens)
    rows = np.repeat(np.arange(len(counts)), per_row)
    ordinal = np.arange(len(rows)) - np.repeat(np.cumsum(per_row) - per_row, per_row)
    firsts = ordinal * tokens
    prefix = np.zeros_like(counts) if kv_lens is None else np.asarray(kv_lens, dtype=np.int64) - counts
    order = np.argsort(-(prefix[rows] + firsts), kind="stable")
    return np.stack((rows[order], firsts[order])).astype(np.int32)


def prefill_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    pages: torch.Tensor,
    slots: torch.Tensor,
    q_starts: torch.Tensor,
    kv_lens: torch.Tensor,
    tiles: torch.Tensor,
    scoring: Scoring,
    *,
    out: torch.Tensor | None = None,
    config: PrefillConfig | None = None,
) -> torch.Tensor:
    """Return ``softmax(scale * q k^T) v`` ``[T, Hq, D]`` for q ``[T, Hq, D]``, causal within each row.

    Row r owns the q tokens ``q_starts[r]:q_starts[r+1]``, the last ones of a context of ``kv_lens[r]``
    tokens whose K and V are in the caches ``[num_pages, page_size, Hkv, D]``, in the pages
    ``pages[slots[r], :]``. ``tiles`` ``[2, NT]`` int32 on the device is what :func:`prefill_tiles` made with
    ``tile_tokens(config.block_m, Hq, Hkv)``; q tokens in no tile are left unwritten. Window and soft cap are
    those of ``paged_attention``. Raises ValueError for arguments that do not fit together.
    """
    _, num_q_heads, head_dim = q.shape
    group = check_caches(q, k_cache, v_cache, pages, scoring.scale)
    check_scoring(scoring, CAN, num_q_heads, "prefill_attention")
    _, page_size, num_kv_heads, _ = k_cache.shape
    rows = kv_lens.numel()
    check_int32(rows, kv_lens=kv_lens, slots=slots)
    check_int32(rows + 1, q_starts=q_starts)
    if tiles.dim() != 2 or tiles.shape[0] != 2 or tiles.dtype is not torch.int32 or not tiles.is_contiguous():
        raise ValueError(
            f"tiles is {list(tiles.shape)} {tiles.dtype}; it must be [2, NT] int32: prefill_tiles."
        )
    config = prefill_config(head_dim, page_size, q.dtype) if config is None else config
    use_tma = config.use_tma and can_use_tma(k_cache, config.block_n) and can_use_tma(v_cache, config.block_n)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device) if out is None else out
    num_tiles = tiles.shape[1]
    if num_tiles == 0:
        return out
    pack = _packed_heads(config.block_m, num_q_heads, num_kv_heads)
    packs = -(-group // pack)
    _prefill_kernel[(num_kv_heads * packs, num_tiles)](
        out,
        q,
        k_cache,
        v_cache,
        cache_descriptor(k_cache, config.block_n) if use_tma else k_cache,
        cache_descriptor(v_cache, config.block_n) if use_tma else v_cache,
        pages,
        slots,
        q_starts,
        kv_lens,
        tiles,
        num_tiles,
        q.stride(0),
        q.stride(1),
        out.stride(0),
        out.stride(1),
        pages.stride(0),
        scoring.scale * LOG2_E,
        KV_HEADS=num_kv_heads,
        GROUP=group,
        PACK=pack,
        PACKS=packs,
        BLOCK_M=config.block_m,
        PAGE_SIZE=page_size,
        HEAD_DIM=head_dim,
        BLOCK_D=max(16, triton.next_power_of_2(head_dim)),
        BLOCK_N=config.block_n,
        WINDOW=scoring.window or 0,
        SOFT_CAP=scoring.soft_cap or 0.0,
        USE_TMA=use_tma,
        ONE_PATH=config.one_path,
        DOT=dot_type(q),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    return out


def _packed_heads(block_m: int, num_q_heads: int, num_kv_heads: int) -> int:
    return min(num_q_heads // num_kv_heads, 16, block_m)


# One compiled kernel for all batches: else a slice's alignment or a count's value would make another.
@jit(
    do_not_specialize=["num_tiles", "table_stride"],
    do_not_specialize_on_alignment=["pages", "slots", "q_starts", "kv_lens", "tiles"],
)
def _prefill_kernel(
    out,
    q,
    k_cache,
    v_cache,
    k_desc,
    v_desc,
    pages,
    slots,
    q_starts,
    kv_lens,
    tiles,
    num_tiles,
    q_stride_token,
    q_stride_head,
    out_stride_token,
    out_stride_head,
    table_stride,
    score_scale,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    PACK: tl.constexpr,  # q heads in a tile
    PACKS: tl.constexpr,  # tiles that the q heads of a kv head take
    BLOCK_M: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    USE_TMA: tl.constexpr,
    ONE_PATH: tl.constexpr,
    DOT: tl.constexpr,
):
    TOKENS: tl.constexpr = BLOCK_M // PACK
    kv_head = tl.program_id(0) // PACKS
    pack = tl.program_id(0) % PACKS
    tile = tl.program_id(1)
    row = tl.load(tiles + tile)
    first_token = tl.load(tiles + num_tiles + tile)
    q_start = tl.load(q_starts + row)
    num_q = tl.load(q_starts + row + 1) - q_start
    kv_len = tl.load(kv_lens + row)
    table = pages + tl.load(slots + row).to(tl.int64) * table_stride

    queries = tl.arange(0, BLOCK_M)
    dims = tl.arange(0, BLOCK_D)
    tokens = first_token + queries // PACK
    members = pack * PACK + queries % PACK
    valid = (queries < TOKENS * PACK) & (tokens < num_q) & (members < GROUP)
    real = valid[:, None] & (dims < HEAD_DIM)[None, :]
    heads = kv_head * GROUP + members
    indices = (q_start + tokens).to(tl.int64)
    places = (indices * q_stride_token + heads * q_stride_head)[:, None] + dims[None, :]
    tile_q = tl.load(q + places, mask=real, other=0.0).to(DOT)

    # Tiles of keys: [first, inner) need the window's mask, [inner, outer) none, [outer, last) the causal one.
    lowest = kv_len - num_q + first_token
    positions = lowest + queries // PACK
    high = tl.minimum(lowest + TOKENS, kv_len)
    last = tl.cdiv(high, BLOCK_N)
    low = 0
    first = 0
    inner = 0
    if WINDOW > 0:
        low = tl.maximum(lowest - WINDOW + 1, 0)
        first = low // BLOCK_N
        inner = tl.minimum(tl.maximum(tl.cdiv(tl.maximum(high - WINDOW, 0), BLOCK_N), first), last)
    outer = tl.maximum((lowest + 1) // BLOCK_N, inner)
    if ONE_PATH:  # the causal mask takes care of the window too
        inner = first
        outer = first

    acc, row_max, row_sum = start_state(BLOCK_M, BLOCK_D)
    if WINDOW > 0:
        acc, row_max, row_sum = attend_tiles(
            acc, row_max, row_sum, tile_q, k_cache, v_cache, k_desc, v_desc, table, kv_head, positions,
            first, inner, low, high, score_scale, PAGE_SIZE, KV_HEADS, HEAD_DIM, BLOCK_D, BLOCK_N,
            True, True, WINDOW, SOFT_CAP, False, DOT,
        )  # fmt: skip
    acc, row_max, row_sum = attend_tiles(
        acc, row_max, row_sum, tile_q, k_cache, v_cache, k_desc, v_desc, table, kv_head, positions,
        inner, outer, low, high, score_scale, PAGE_SIZE, KV_HEADS, HEAD_DIM, BLOCK_D, BLOCK_N,
        False, True, WINDOW, SOFT_CAP, USE_TMA, DOT,
    )  # fmt: skip
    # Masked tiles never go through TMA: it would bring in what lies behind the row's last token.
    acc, row_max, row_sum = attend_tiles(
        acc, row_max, row_sum, tile_q, k_cache, v_cache, k_desc, v_desc, table, kv_head, positions,
        outer, last, low, high, score_scale, PAGE_SIZE, KV_HEADS, HEAD_DIM, BLOCK_D, BLOCK_N,
        True, True, WINDOW, SOFT_CAP, False, DOT,
    )  # fmt: skip
    result, _ = finish_state(acc, row_max, row_sum)
    places = (indices * out_stride_token + heads * out_stride_head)[:, None] + dims[None, :]
    tl.store(out + places, result.to(out.dtype.element_ty), mask=real)
