"""Copying whole pages of the KV cache in many planes at once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .jit import jit


def copy_pages(
    data: torch.Tensor, src: torch.Tensor, dst: torch.Tensor, *, block: int = 1024, num_warps: int = 4
) -> None:
    """Copy page ``src[i]`` to page ``dst[i]`` in every plane, for all i as if at once.

    data ``[P, num_pages, ...]`` is contiguous, P planes of any dtype; src and dst ``[n]`` int32 on
    its device. Everything is read before anything is written, through n pages of temporary memory, so a
    page may be the target of one copy and the source of another; dst may not name a page twice, unless
    from the same src. ``block`` is the number of words (8 bytes, where a page divides into them) that a
    program moves. Raises ValueError for shapes, dtypes or strides that do not fit; the page ids are
    trusted.
    """
    if data.dim() < 3 or not data.is_contiguous():
        raise ValueError(
            f"data is {list(data.shape)}, strides {data.stride()}; it must be contiguous [P, num_pages, ...]."
        )
    if src.dim() != 1 or src.shape != dst.shape or {src.dtype, dst.dtype} != {torch.int32}:
        raise ValueError(
            f"src is {list(src.shape)} {src.dtype}, dst {list(dst.shape)} {dst.dtype};"
            " both must be int32 [n]."
        )
    count = src.numel()
    words = _as_words(data)
    planes, num_pages, size = words.shape
    if not count or not words.numel():
        return
    held = torch.empty((count, planes, size), dtype=words.dtype, device=words.device)
    blocks = triton.cdiv(size, block)
    grid = (count * planes * blocks,)
    for ids, write in ((src, False), (dst, True)):
        _move_pages_kernel[grid](
            held,
            words,
            ids.contiguous(),
            num_pages,
            SIZE=size,
            PLANES=planes,
            BLOCKS=blocks,
            BLOCK=block,
            WRITE=write,
            num_warps=num_warps,
        )


def copy_pages_reference(data: torch.Tensor, src: torch.Tensor, dst: torch.Tensor) -> None:
    """Compute :func:`copy_pages` in torch."""
    raw = data.view(torch.uint8)  # torch's indexed copies know no float8
    raw.index_copy_(1, dst.long(), raw.index_select(1, src.long()))


def _as_words(data: torch.Tensor) -> torch.Tensor:
    """The same memory as ``[P, num_pages, words]`` integers, the widest that divide a page."""
    planes, num_pages = data.shape[:2]
    flat = data.view(torch.uint8).view(planes, num_pages, -1)
    for dtype in (torch.int64, torch.int32, torch.int16):
        if flat.shape[2] % dtype.itemsize == 0 and data.data_ptr() % dtype.itemsize == 0:
            return flat.view(dtype)
    return flat


@jit(do_not_specialize=["num_pages"])
def _move_pages_kernel(
    held_ptr,
    data_ptr,
    ids_ptr,
    num_pages,
    SIZE: tl.constexpr,
    PLANES: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
    WRITE: tl.constexpr,
):
    """Gather pages into ``held`` [n, planes, words], or with WRITE scatter them from there."""
    program = tl.program_id(0)
    moved = (program // BLOCKS).to(tl.int64)  # which page of which plane
    index, plane = moved // PLANES, moved % PLANES
    page = tl.load(ids_ptr + index).to(tl.int64)
    word = (program % BLOCKS) * BLOCK + tl.arange(0, BLOCK)
    mask = word < SIZE
    in_held = held_ptr + moved * SIZE + word
    in_data = data_ptr + (plane * num_pages + page) * SIZE + word
    if WRITE:
        tl.store(in_data, tl.load(in_held, mask=mask), mask=mask)
    else:
        tl.store(in_held, tl.load(in_data, mask=mask), mask=mask)
