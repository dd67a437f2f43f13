"""The inner loop of the paged attention kernels: a tile of queries walks over tiles of keys and values.

Online softmax (Milakov & Gimelshein 2018, arXiv:1805.02867; FlashAttention-2, arXiv:2307.08691) in units of
log2, so that the exponential is the hardware's own and the score scale folds into one multiply-add.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = 1.4426950408889634
"""Launchers multiply the score scale by it: kernels work with powers of two."""


@triton.jit
def attend_tiles(
    acc,  # [M, BLOCK_D] fp32: weighted sum of values so far
    row_max,  # [M] fp32: largest score so far, log2 units
    row_sum,  # [M] fp32: sum of weights so far, relative to row_max
    q,  # [M, BLOCK_D] of type DOT
    k_cache,
    v_cache,
    k_desc,  # tensor descriptors of the caches, read if USE_TMA only
    v_desc,
    table,  # pointer to the row's page ids
    kv_head,
    positions,  # [M] int32: what each query may see up to, read if CAUSAL
    first,  # tiles first..last-1, BLOCK_N keys each, counted from position 0
    last,
    low,  # keys [low, high) may be read; nothing outside is, unless not MASKED
    high,
    score_scale,  # scale * log2(e), above 0
    PAGE_SIZE: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr,  # False: every query sees every key of these tiles
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,  # 0: none
    SOFT_CAP: tl.constexpr,  # 0: none
    USE_TMA: tl.constexpr,
    DOT: tl.constexpr,  # type of the operands of matrix products
):
    """Return (acc, row_max, row_sum) after the tiles [first, last).

    A key outside [low, high) is not skipped but replaced by the nearest one inside, then given weight zero:
    loads need no masks, and what lies there (unset, NaN, another sequence's) cannot matter.
    """
    offsets = tl.arange(0, BLOCK_N)
    dims = tl.arange(0, BLOCK_D)
    row_stride: tl.constexpr = KV_HEADS * HEAD_DIM
    head_offset = kv_head * HEAD_DIM
    top = tl.maximum(high - 1, 0)
    # The page ids of a tile are loaded one iteration ahead, or their latency would precede that of K.
    if PAGE_SIZE >= BLOCK_N:
        page = tl.load(table + tl.maximum(tl.minimum(first, last - 1), 0) * BLOCK_N // PAGE_SIZE)
    else:
        page = tl.load(table + tl.minimum(tl.maximum(first * BLOCK_N + offsets, low), top) // PAGE_SIZE)

    for tile in range(first, last):
        keys = tile * BLOCK_N + offsets
        if MASKED:
            tokens = tl.minimum(tl.maximum(keys, low), top)
        else:
            tokens = keys
        if PAGE_SIZE >= BLOCK_N:
            next_page = tl.load(table + tl.minimum(tile + 1, last - 1) * BLOCK_N // PAGE_SIZE)
        else:
            next_page = tl.load(table + tl.minimum(tl.maximum(keys + BLOCK_N, low), top) // PAGE_SIZE)

        if USE_TMA:
            row = page * PAGE_SIZE + tile * BLOCK_N % PAGE_SIZE
            k = k_desc.load([row, head_offset])
            v = v_desc.load([row, head_offset])
        else:
            if PAGE_SIZE >= BLOCK_N:
                base = page.to(tl.int64) * (PAGE_SIZE * row_stride) + head_offset
                places = (tokens % PAGE_SIZE)[:, None] * row_stride + dims[None, :]
            else:
                base = head_offset
                rows = page.to(tl.int64) * PAGE_SIZE + tokens % PAGE_SIZE
                places = rows[:, None] * row_stride + dims[None, :]
            if BLOCK_D == HEAD_DIM:
                k = tl.load(k_cache + base + places)
                v = tl.load(v_cache + base + places)
            else:
                inside = dims[None, :] < HEAD_DIM
                k = tl.load(k_cache + base + places, mask=inside, other=0.0)
                v = tl.load(v_cache + base + places, mask=inside, other=0.0)

        scores = tl.dot(q, tl.trans(k.to(DOT)), input_precision="ieee")
        if SOFT_CAP > 0:
            # tanh(x) = 2 sigmoid(2x) - 1; score_scale * ln 2 is the scale itself
            capped = tl.sigmoid(scores * (score_scale * (2 * 0.6931471805599453 / SOFT_CAP)))
            scores = (2 * capped - 1) * (SOFT_CAP * 1.4426950408889634)
            factor = 1.0
        else:
            factor = score_scale
        if MASKED:
            visible = (keys[None, :] >= low) & (keys[None, :] < high)
            if CAUSAL:
                visible = visible & (keys[None, :] <= positions[:, None])
                if WINDOW > 0:
                    visible = visible & (keys[None, :] > positions[:, None] - WINDOW)
            scores = tl.where(visible, scores, float("-inf"))
        new_max = tl.maximum(row_max, tl.max(scores, 1) * factor)
        weights = tl.exp2(scores * factor - new_max[:, None])
        shrink = tl.exp2(row_max - new_max)
        row_sum = row_sum * shrink + tl.sum(weights, 1)
        acc = tl.dot(weights.to(DOT), v.to(DOT), acc * shrink[:, None], input_precision="ieee")
        row_max = new_max
        page = next_page
    return acc, row_max, row_sum


@triton.jit
def start_state(BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr):
    """Return the state before any key. Its maximum is finite, so that rows that see nothing give no NaN."""
    acc = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
    row_max = tl.full([BLOCK_M], -1e30, dtype=tl.float32)
    row_sum = tl.zeros([BLOCK_M], dtype=tl.float32)
    return acc, row_max, row_sum


@triton.jit
def finish_state(acc, row_max, row_sum):
    """Return (attention output, zeros where a row saw nothing; log2 of its sum of weights, -inf there)."""
    some = row_sum != 0  # true of NaN, which must not be taken for nothing
    divisor = tl.where(some, row_sum, 1.0)
    lse = tl.where(some, row_max + tl.log2(divisor), float("-inf"))
    return acc / divisor[:, None], lse
