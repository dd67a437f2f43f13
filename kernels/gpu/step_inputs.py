"""What a step reads from and writes to the per-slot tables, without the host seeing a value."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .jit import jit

_INTEGERS = (torch.int32, torch.int64)


def prepare_step(
    tokens: torch.Tensor,
    pages: torch.Tensor,
    token_slots: torch.Tensor,
    positions: torch.Tensor,
    page_size: int,
    input_ids: torch.Tensor | None = None,
    kv_slots: torch.Tensor | None = None,
    *,
    block: int = 256,
    num_warps: int = 4,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gather the T token ids of a step and the cache locations of their keys and values.

    tokens ``[S, C]`` and pages ``[S, P]`` int32 are the tables; token t is position ``positions[t]`` of
    the sequence in row ``token_slots[t]`` (both ``[T]``, int32 or int64). Returns
    ``input_ids[t] = tokens[slot, position]`` (int64, or the dtype of the buffer given) and
    ``kv_slots[t] = pages[slot, position // page_size] * page_size + position % page_size`` (int64), in the
    contiguous ``[T]`` buffers given or in new ones. Row 0 is padding: id 0, page 0, whatever the position.
    Slots and positions are trusted to lie inside the tables. Raises ValueError for shapes, dtypes or
    strides that do not fit.
    """
    count, device = token_slots.numel(), token_slots.device
    if input_ids is None:
        input_ids = torch.empty(count, dtype=torch.int64, device=device)
    if kv_slots is None:
        kv_slots = torch.empty(count, dtype=torch.int64, device=device)
    _check_table("tokens", tokens)
    _check_table("pages", pages)
    for name, vector, dtypes in (
        ("token_slots", token_slots, _INTEGERS),
        ("positions", positions, _INTEGERS),
        ("input_ids", input_ids, _INTEGERS),
        ("kv_slots", kv_slots, (torch.int64,)),
    ):
        _check_vector(name, vector, count, dtypes)
    if page_size < 1:
        raise ValueError(f"page_size is {page_size}; a page holds at least 1 token.")
    if count:
        _prepare_step_kernel[(triton.cdiv(count, block),)](
            input_ids,
            kv_slots,
            tokens,
            pages,
            token_slots,
            positions,
            count,
            tokens.stride(0),
            pages.stride(0),
            PAGE_SIZE=page_size,
            BLOCK=block,
            num_warps=num_warps,
        )
    return input_ids, kv_slots


def store_tokens(
    tokens: torch.Tensor,
    slots: torch.Tensor,
    positions: torch.Tensor,
    token_ids: torch.Tensor,
    *,
    block: int = 256,
    num_warps: int = 4,
) -> None:
    """Write ``tokens[slots[i], positions[i]] = token_ids[i]`` where that is a place to keep.

    tokens ``[S, C]`` int32; slots, positions and token_ids ``[B]`` int32 or int64. Rows of slot 0 (padding)
    and positions from C on (the token after a full context) are left out. Raises ValueError for shapes,
    dtypes or strides that do not fit.
    """
    count = slots.numel()
    _check_table("tokens", tokens)
    for name, vector in (("slots", slots), ("positions", positions), ("token_ids", token_ids)):
        _check_vector(name, vector, count, _INTEGERS)
    if count:
        _store_tokens_kernel[(triton.cdiv(count, block),)](
            tokens,
            slots,
            positions,
            token_ids,
            count,
            tokens.shape[1],
            tokens.stride(0),
            BLOCK=block,
            num_warps=num_warps,
        )


def prepare_step_reference(
    tokens: torch.Tensor,
    pages: torch.Tensor,
    token_slots: torch.Tensor,
    positions: torch.Tensor,
    page_size: int,
    input_ids: torch.Tensor | None = None,
    kv_slots: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute :func:`prepare_step` in torch."""
    slot = token_slots.long()
    position = torch.where(slot == 0, 0, positions.long())
    page = torch.where(slot == 0, 0, pages[slot, position // page_size].long())
    ids = torch.where(slot == 0, 0, tokens[slot, position].long())
    places = page * page_size + positions.long() % page_size
    input_ids = ids if input_ids is None else input_ids.copy_(ids)
    return input_ids, places if kv_slots is None else kv_slots.copy_(places)


def store_tokens_reference(
    tokens: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor, token_ids: torch.Tensor
) -> None:
    """Compute :func:`store_tokens` in torch."""
    kept = (slots != 0) & (positions >= 0) & (positions < tokens.shape[1])
    tokens[slots[kept].long(), positions[kept].long()] = token_ids[kept].to(tokens.dtype)


def _check_table(name: str, table: torch.Tensor) -> None:
    if table.dim() != 2 or table.dtype is not torch.int32 or table.stride(1) != 1:
        raise ValueError(
            f"{name} is {list(table.shape)} {table.dtype}, strides {table.stride()};"
            " a slot table is int32 [slots, columns] with contiguous rows."
        )


def _check_vector(name: str, vector: torch.Tensor, count: int, dtypes: tuple[torch.dtype, ...]) -> None:
    if vector.shape != (count,) or vector.dtype not in dtypes or not vector.is_contiguous():
        raise ValueError(
            f"{name} is {list(vector.shape)} {vector.dtype}, strides {vector.stride()}; it must be"
            f" contiguous [{count}] of {' or '.join(map(str, dtypes))}."
        )


# What varies between steps, and between engines by the size of their pools, makes no kernel of its own.
@jit(do_not_specialize=["count", "tokens_stride", "pages_stride"])
def _prepare_step_kernel(
    ids_ptr,
    kv_slots_ptr,
    tokens_ptr,
    pages_ptr,
    slots_ptr,
    positions_ptr,
    count,
    tokens_stride,
    pages_stride,
    PAGE_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < count
    slot = tl.load(slots_ptr + index, mask=inside, other=0).to(tl.int64)
    position = tl.load(positions_ptr + index, mask=inside, other=0).to(tl.int64)
    owned = inside & (slot != 0)
    token = tl.load(tokens_ptr + slot * tokens_stride + position, mask=owned, other=0)
    page = tl.load(pages_ptr + slot * pages_stride + position // PAGE_SIZE, mask=owned, other=0).to(tl.int64)
    tl.store(ids_ptr + index, token.to(ids_ptr.dtype.element_ty), mask=inside)
    tl.store(kv_slots_ptr + index, page * PAGE_SIZE + position % PAGE_SIZE, mask=inside)


@jit(do_not_specialize=["count", "width", "tokens_stride"])
def _store_tokens_kernel(
    tokens_ptr, slots_ptr, positions_ptr, ids_ptr, count, width, tokens_stride, BLOCK: tl.constexpr
):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < count
    slot = tl.load(slots_ptr + index, mask=inside, other=0).to(tl.int64)
    position = tl.load(positions_ptr + index, mask=inside, other=0).to(tl.int64)
    token = tl.load(ids_ptr + index, mask=inside, other=0).to(tl.int32)
    kept = inside & (slot != 0) & (position >= 0) & (position < width)
    tl.store(tokens_ptr + slot * tokens_stride + position, token, mask=kept)
