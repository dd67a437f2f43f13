"""Rotary position embedding of q and k, fused with writing k and v into the paged cache."""

from __future__ import annotations

import functools
from types import ModuleType

import torch

from .device import has_pdl, on_gpu
from .native import element_type, load
from .rotary_checks import check_rotary

_C = load()


def rotary_and_store(
    qkv: torch.Tensor,
    cos_sin: torch.Tensor,
    positions: torch.Tensor,
    kv_slots: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    num_q_heads: int,
) -> torch.Tensor:
    """Rotate q and k by their positions, store k and v in the cache, return the rotated q.

    qkv ``[T, (Hq + 2 Hkv) * D]`` holds q | k | v; cos_sin ``[max_pos, rotary_dim]`` fp32 holds
    cos | sin, each of rotary_dim/2; positions and kv_slots ``[T]`` int64; the caches are
    ``[num_pages, page_size, Hkv, D]`` of qkv's dtype, and token t goes to the flat location
    ``kv_slots[t] = page * page_size + offset``. Returns q ``[T, Hq, D]``, a new tensor.

    The rotation pairs dimension i with ``i + rotary_dim/2`` (the half-split form of RoPE,
    arXiv:2104.09864, as GPT-NeoX and Llama checkpoints in Hugging Face layout expect), is computed
    in fp32, and leaves the dimensions from rotary_dim on as they are.

    Raises ValueError for shapes, dtypes or cache strides that do not fit together, IndexError for a
    position or location outside its table (on the CPU).
    """
    if on_gpu(qkv):
        pdl = has_pdl(qkv.device)
        return _gpu().rotary_and_store(
            qkv, cos_sin, positions, kv_slots, k_cache, v_cache, num_q_heads, pdl=pdl
        )
    tokens, num_kv_heads, head_dim, rotary_dim = check_rotary(
        qkv, cos_sin, positions, kv_slots, k_cache, v_cache, num_q_heads
    )
    if _C is None or (kind := element_type(qkv, k_cache, v_cache)) is None:
        return rotary_and_store_reference(qkv, cos_sin, positions, kv_slots, k_cache, v_cache, num_q_heads)
    qkv, cos_sin = qkv.contiguous(), cos_sin.contiguous()
    positions, kv_slots = positions.contiguous(), kv_slots.contiguous()
    q = qkv.new_empty((tokens, num_q_heads, head_dim))
    _C.rotary_and_store(
        q.data_ptr(),
        qkv.data_ptr(),
        cos_sin.data_ptr(),
        positions.data_ptr(),
        kv_slots.data_ptr(),
        k_cache.data_ptr(),
        v_cache.data_ptr(),
        tokens,
        num_q_heads,
        num_kv_heads,
        head_dim,
        rotary_dim,
        cos_sin.shape[0],
        k_cache.shape[0] * k_cache.shape[1],
        kind,
    )
    return q


def rotary_and_store_reference(
    qkv: torch.Tensor,
    cos_sin: torch.Tensor,
    positions: torch.Tensor,
    kv_slots: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    num_q_heads: int,
) -> torch.Tensor:
    """Compute :func:`rotary_and_store` in torch."""
    num_kv_heads, head_dim = k_cache.shape[2:]
    heads = qkv.view(qkv.shape[0], num_q_heads + 2 * num_kv_heads, head_dim)
    q, k, v = heads.split((num_q_heads, num_kv_heads, num_kv_heads), dim=1)
    cos, sin = cos_sin[positions].unsqueeze(1).chunk(2, dim=-1)  # [T, 1, rotary_dim / 2] each
    k_cache.view(-1, num_kv_heads, head_dim)[kv_slots] = _rotate(k, cos, sin)
    v_cache.view(-1, num_kv_heads, head_dim)[kv_slots] = v
    return _rotate(q, cos, sin)


@functools.cache
def _gpu() -> ModuleType:
    from .gpu import rotary

    return rotary


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate the first dimensions of x ``[T, heads, D]``; cos and sin are ``[T, 1, rotary_dim / 2]``."""
    half = cos.shape[-1]
    first, second = x[..., :half].float(), x[..., half : 2 * half].float()
    rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return torch.cat((rotated.to(x.dtype), x[..., 2 * half :]), dim=-1)
