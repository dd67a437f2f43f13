"""What rotary kernels ask of their arguments."""

from __future__ import annotations

import torch


def check_rotary(
    qkv: torch.Tensor,
    cos_sin: torch.Tensor,
    positions: torch.Tensor,
    kv_slots: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    num_q_heads: int,
    index_dtypes: tuple[torch.dtype, ...] = (torch.int64,),
) -> tuple[int, int, int, int]:
    """Return (T, Hkv, D, rotary_dim) or raise ValueError; the kernels trust what passed here."""
    tokens, width = qkv.shape
    cache_shape = k_cache.shape
    num_kv_heads, head_dim = cache_shape[2:]
    rotary_dim = cos_sin.shape[1]
    if width != (num_q_heads + 2 * num_kv_heads) * head_dim or v_cache.shape != cache_shape:
        raise ValueError(
            f"qkv {list(qkv.shape)} with {num_q_heads} q heads does not fit the caches"
            f" {list(cache_shape)} and {list(v_cache.shape)} [num_pages, page_size, Hkv, D]."
        )
    if rotary_dim % 2 or rotary_dim > head_dim or cos_sin.dtype is not torch.float32:
        raise ValueError(
            f"cos_sin is {list(cos_sin.shape)} {cos_sin.dtype}; it must be fp32, of even width <= {head_dim}."
        )
    if positions.dtype not in index_dtypes or kv_slots.dtype not in index_dtypes:
        allowed = " or ".join(str(dtype).removeprefix("torch.") for dtype in index_dtypes)
        raise ValueError(
            f"positions and kv_slots are {positions.dtype}, {kv_slots.dtype}; both must be {allowed}."
        )
    if positions.numel() != tokens or kv_slots.numel() != tokens:
        raise ValueError(
            f"{positions.numel()} positions and {kv_slots.numel()} kv_slots for {tokens} tokens."
        )
    if not (k_cache.is_contiguous() and v_cache.is_contiguous()):
        raise ValueError("The K and V caches are written in place and must be contiguous.")
    return tokens, num_kv_heads, head_dim, rotary_dim
