"""What the launchers of the attention kernels check, and the types they compute in."""

from __future__ import annotations

import torch
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from ..device import on_gpu

HEAD_DIM_MAX = 256
PAGE_SIZE_MAX = 1024


def check_caches(
    q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, pages: torch.Tensor, scale: float
) -> int:
    """Return Hq / Hkv. Raises ValueError for tensors or a scale that the attention kernels cannot take."""
    shape = k_cache.shape
    fits = q.dim() == 3 and len(shape) == 4 and v_cache.shape == shape and q.shape[2] == shape[3]
    if not fits or q.shape[1] % shape[2]:
        raise ValueError(
            f"q {list(q.shape)} [tokens, Hq, D] does not fit the caches {list(shape)} and"
            f" {list(v_cache.shape)} [num_pages, page_size, Hkv, D]; Hq must be a multiple of Hkv."
        )
    if not q.dtype == k_cache.dtype == v_cache.dtype or q.dtype not in _DOT_TYPES:
        raise ValueError(
            f"q, K and V are {q.dtype}, {k_cache.dtype} and {v_cache.dtype}; they must share one of"
            " bfloat16, float16, float32."
        )
    if not (k_cache.is_contiguous() and v_cache.is_contiguous()) or q.stride(2) != 1:
        raise ValueError("The K and V caches must be contiguous, and q in its last dimension.")
    page_size, head_dim = shape[1], shape[3]
    if page_size & (page_size - 1) or page_size > PAGE_SIZE_MAX or head_dim > HEAD_DIM_MAX:
        raise ValueError(
            f"page_size is {page_size} and head_dim {head_dim}; the kernels take a power of two up to"
            f" {PAGE_SIZE_MAX} and at most {HEAD_DIM_MAX}."
        )
    if pages.dim() != 2 or pages.dtype is not torch.int32 or pages.stride(1) != 1:
        raise ValueError(
            f"pages is {list(pages.shape)} {pages.dtype}; it must be [num_slots, max_pages] int32."
        )
    if scale <= 0:
        raise ValueError(f"scale is {scale}; it must be positive.")
    return q.shape[1] // shape[2]


def check_int32(length: int, **tensors: torch.Tensor | None) -> None:
    """Raise ValueError unless each tensor is None or contiguous int32 of that length."""
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if tensor.shape != (length,) or tensor.dtype is not torch.int32 or not tensor.is_contiguous():
            raise ValueError(
                f"{name} is {list(tensor.shape)} {tensor.dtype}; it must be [{length}] int32, contiguous."
            )


def dot_type(q: torch.Tensor) -> tl.dtype:
    """Return the type matrix products are taken in: q's own on a GPU.

    Triton's interpreter holds bf16 as integers and would multiply those, so on the CPU it is fp32.
    """
    return _DOT_TYPES[q.dtype] if on_gpu(q) else tl.float32


def cache_descriptor(cache: torch.Tensor, block_n: int) -> TensorDescriptor:
    """Return a TMA descriptor of ``[num_pages, page_size, Hkv, D]`` for block_n tokens of one head."""
    num_pages, page_size, num_heads, head_dim = cache.shape
    width = num_heads * head_dim
    return TensorDescriptor(cache, [num_pages * page_size, width], [width, 1], [block_n, head_dim])


def can_use_tma(cache: torch.Tensor, block_n: int) -> bool:
    """Whether a tile of block_n tokens of one head is one block that TMA can load."""
    _, page_size, num_heads, head_dim = cache.shape
    whole = head_dim >= 16 and head_dim & (head_dim - 1) == 0 and block_n <= min(page_size, 256)
    return whole and num_heads * head_dim * cache.element_size() % 16 == 0 and cache.data_ptr() % 16 == 0


_DOT_TYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}
