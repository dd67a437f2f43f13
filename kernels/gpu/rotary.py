"""Rotary position embedding of q and k on the GPU, fused with writing k and v into the paged cache."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..rotary_checks import check_rotary
from .jit import jit


def rotary_and_store(
    qkv: torch.Tensor,
    cos_sin: torch.Tensor,
    positions: torch.Tensor,
    kv_slots: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    num_q_heads: int,
    *,
    out: torch.Tensor | None = None,
    heads: int | None = None,
    num_warps: int = 4,
    pdl: bool = False,
) -> torch.Tensor:
    """Rotate q and k by their positions, store k and v in the cache, return the rotated q ``[T, Hq, D]``.

    qkv ``[T, (Hq + 2 Hkv) * D]`` holds q | k | v; cos_sin ``[max_pos, rotary_dim]`` fp32 holds cos | sin,
    each of rotary_dim/2; positions and kv_slots ``[T]`` int32 or int64; the caches are contiguous
    ``[num_pages, page_size, Hkv, D]`` of qkv's dtype, and token t goes to the flat location
    ``kv_slots[t] = page * page_size + offset``. Dimension i is paired with ``i + rotary_dim/2``, in fp32;
    from rotary_dim on the dimensions stay as they are. q goes to a contiguous ``out`` if given.

    ``heads`` is how many heads a program does, a power of two. With ``pdl`` the launch may begin before
    the kernel ahead of it has ended. Raises ValueError for shapes, dtypes or strides that do not fit;
    positions and locations are trusted to lie inside their tables. Tokens that share a location (padding)
    leave there what any of them wrote.
    """
    tokens, num_kv_heads, head_dim, rotary_dim = check_rotary(
        qkv, cos_sin, positions, kv_slots, k_cache, v_cache, num_q_heads, (torch.int32, torch.int64)
    )
    if not qkv.dtype == k_cache.dtype == v_cache.dtype:
        raise ValueError(
            f"qkv is {qkv.dtype}, the caches {k_cache.dtype} and {v_cache.dtype}; use one dtype."
        )
    shape = (tokens, num_q_heads, head_dim)
    if out is None:
        out = torch.empty(shape, dtype=qkv.dtype, device=qkv.device)
    elif out.shape != shape or out.dtype is not qkv.dtype or not out.is_contiguous():
        raise ValueError(
            f"out is {list(out.shape)} {out.dtype}; it must be {list(shape)} {qkv.dtype}, contiguous."
        )
    if not tokens:
        return out
    if qkv.stride(1) != 1:
        qkv = qkv.contiguous()
    total = num_q_heads + 2 * num_kv_heads
    if heads is None:  # a short step wants more programs than a long one
        heads = min(triton.next_power_of_2(total), 4 if tokens < 64 else 16)
    groups = triton.cdiv(total, heads)
    rest = head_dim - rotary_dim
    _rotary_and_store_kernel[(tokens * groups,)](
        out,
        k_cache,
        v_cache,
        qkv,
        cos_sin.contiguous(),
        positions.contiguous(),
        kv_slots.contiguous(),
        qkv.stride(0),
        groups,
        NUM_Q=num_q_heads,
        NUM_KV=num_kv_heads,
        DIM=head_dim,
        HALF=rotary_dim // 2,
        HEADS=heads,
        BLOCK_HALF=triton.next_power_of_2(max(rotary_dim // 2, 1)),
        BLOCK_REST=triton.next_power_of_2(max(rest, 1)),
        PDL=pdl,
        num_warps=num_warps,
        **({"launch_pdl": True} if pdl else {}),
    )
    return out


@triton.jit
def _store_heads(q_ptr, k_ptr, v_ptr, token, slot, head, inside, column, value, NUM_Q, NUM_KV, DIM):
    """Write ``value`` [heads, columns] to wherever its q, k and v heads belong."""
    value = value.to(q_ptr.dtype.element_ty)
    is_q = head < NUM_Q
    is_k = (head >= NUM_Q) & (head < NUM_Q + NUM_KV)
    is_v = (head >= NUM_Q + NUM_KV) & (head < NUM_Q + 2 * NUM_KV)
    # every offset is from the start of the token's heads; slots address more than 2^31 elements
    cache_row = slot * (NUM_KV * DIM)
    k_head, v_head = head - NUM_Q, head - NUM_Q - NUM_KV
    tl.store(q_ptr + token * (NUM_Q * DIM) + head * DIM + column, value, mask=inside & is_q)
    tl.store(k_ptr + cache_row + k_head * DIM + column, value, mask=inside & is_k)
    tl.store(v_ptr + cache_row + v_head * DIM + column, value, mask=inside & is_v)


@jit
def _rotary_and_store_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    qkv_ptr,
    cos_sin_ptr,
    positions_ptr,
    slots_ptr,
    qkv_stride,
    groups,
    NUM_Q: tl.constexpr,
    NUM_KV: tl.constexpr,
    DIM: tl.constexpr,
    HALF: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_REST: tl.constexpr,
    PDL: tl.constexpr,
):
    program = tl.program_id(0)
    token = (program // groups).to(tl.int64)
    head = (program % groups) * HEADS + tl.arange(0, HEADS)[:, None]
    inside = head < NUM_Q + 2 * NUM_KV
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    slot = tl.load(slots_ptr + token).to(tl.int64)
    heads_ptr = qkv_ptr + token * qkv_stride + head * DIM
    if HALF > 0:
        pair = tl.arange(0, BLOCK_HALF)[None, :]
        angle = cos_sin_ptr + tl.load(positions_ptr + token).to(tl.int64) * (2 * HALF) + pair
        cos = tl.load(angle, mask=pair < HALF, other=0.0)
        sin = tl.load(angle + HALF, mask=pair < HALF, other=0.0)
        mask = inside & (pair < HALF)
        first = tl.load(heads_ptr + pair, mask=mask, other=0.0).to(tl.float32)
        second = tl.load(heads_ptr + HALF + pair, mask=mask, other=0.0).to(tl.float32)
        turns = head < NUM_Q + NUM_KV  # chosen by select: v may hold infinities, and inf * 0 is NaN
        left = tl.where(turns, first * cos - second * sin, first)
        right = tl.where(turns, second * cos + first * sin, second)
        _store_heads(q_ptr, k_ptr, v_ptr, token, slot, head, mask, pair, left, NUM_Q, NUM_KV, DIM)
        _store_heads(q_ptr, k_ptr, v_ptr, token, slot, head, mask, pair + HALF, right, NUM_Q, NUM_KV, DIM)
    if 2 * HALF < DIM:
        column = 2 * HALF + tl.arange(0, BLOCK_REST)[None, :]
        mask = inside & (column < DIM)
        value = tl.load(heads_ptr + column, mask=mask, other=0.0)
        _store_heads(q_ptr, k_ptr, v_ptr, token, slot, head, mask, column, value, NUM_Q, NUM_KV, DIM)
