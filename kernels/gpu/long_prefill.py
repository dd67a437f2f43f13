"""Prefill of long rows through cuDNN: K and V gathered out of their pages once, then dense attention.

cuDNN's flash attention outruns the paged Triton kernel on an H100 (600 against 530 TFLOP/s in bf16), but
wants K and V dense, and builds an execution plan, tens to hundreds of milliseconds on the host, for every new
pair of lengths. So a row hands over only a part that begins and ends at multiples of ``unit`` positions, and
what stands before the part is cut by powers of two, merged by log-sum-exp: few pairs of lengths occur.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl

from ..device import capability
from ..scoring import Scoring, check_scoring
from .attention_checks import check_caches
from .jit import jit

CAN: Final = frozenset[str]()
"""Fields of a :class:`Scoring` that cuDNN is given: none but the scale."""

UNIT = 2048
"""Positions that the lengths given to cuDNN are multiples of."""

MIN_MEAN_KEYS = 4096
"""Keys that a token of a part must see on average, or gathering and merging cost more than cuDNN saves."""


class LongRow(NamedTuple):
    """The part of a prefill row that goes through cuDNN; host integers."""

    row: int  # index among the prefill rows
    slot: int  # row of the slot table
    q_start: int  # the part's first token, counted from the step's first
    num_tokens: int
    kv_len: int  # context up to and with its last token
    prefix_parts: tuple[int, ...]  # lengths, in order, that the context before it is cut into


def can_use(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether rows of these can go this way at all: what was measured, an H100's generation."""
    return (
        device.type != "cpu"
        and dtype in (torch.bfloat16, torch.float16)
        and head_dim in (64, 128)
        and torch.version.hip is None
        and capability(device)[0] == 9
        and torch.backends.cudnn.is_available()
        and hasattr(torch.ops.aten, "_scaled_dot_product_cudnn_attention")
    )


def load_library(device: torch.device, dtype: torch.dtype) -> None:
    """Load cuDNN, which takes the first row of a process most of a second. Any thread may call."""
    few = torch.zeros((64, 1, 64), dtype=dtype, device=device)
    _cudnn_attention(few, few, few, 1.0, causal=True)


def prefix_parts(num_prefix: int, unit: int = UNIT) -> tuple[int, ...]:
    """Cut a multiple of ``unit`` into multiples of it by powers of two, the largest first."""
    if num_prefix % unit:
        raise ValueError(f"num_prefix is {num_prefix}; it must be a multiple of unit, {unit}.")
    units = num_prefix // unit
    return tuple(unit << bit for bit in range(units.bit_length() - 1, -1, -1) if units >> bit & 1)


def long_rows(
    slots: np.ndarray,
    q_starts: np.ndarray,
    counts: np.ndarray,
    kv_lens: np.ndarray,
    *,
    unit: int = UNIT,
    min_mean_keys: int = MIN_MEAN_KEYS,
) -> tuple[LongRow, ...]:
    """Return the parts worth giving to cuDNN, at most one of each prefill row.

    slots, counts, kv_lens ``[P]`` and q_starts ``[P]`` or longer describe the rows as ``PrefillRows`` does.
    """
    found = []
    for row in np.flatnonzero(np.asarray(counts) >= unit).tolist():
        count, kv_len = int(counts[row]), int(kv_lens[row])
        position = kv_len - count
        begin, end = -(-position // unit) * unit, kv_len // unit * unit
        if end <= begin or begin + (end - begin) // 2 < min_mean_keys:
            continue
        q_start = int(q_starts[row]) + begin - position
        found.append(LongRow(row, int(slots[row]), q_start, end - begin, end, prefix_parts(begin, unit)))
    return tuple(found)


def tiles_outside(
    tiles: np.ndarray, tokens: int, q_starts: np.ndarray, parts: Sequence[LongRow]
) -> np.ndarray:
    """Return those of ``tiles`` ``[2, NT]``, of up to ``tokens`` tokens each, that have a token in no part.

    q_starts ``[P + 1]`` are the rows' first tokens and the step's end. A tile that straddles an edge stays,
    so parts are to be computed after the tiles.
    """
    rows, firsts = tiles
    keep = np.ones(tiles.shape[1], dtype=bool)
    for part in parts:
        begin = part.q_start - int(q_starts[part.row])
        count = int(q_starts[part.row + 1]) - int(q_starts[part.row])
        ends = np.minimum(firsts + tokens, count)
        keep &= (rows != part.row) | (firsts < begin) | (ends > begin + part.num_tokens)
    return np.ascontiguousarray(tiles[:, keep])


def attend_long(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    page_ids: torch.Tensor,
    num_prefix: int,
    scoring: Scoring,
    *,
    prefix_parts: Sequence[int] | None = None,
    expand_kv: bool = False,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return causal attention ``[n, Hq, D]`` of q ``[n, Hq, D]``, tokens after ``num_prefix`` others.

    K and V of all of them are in the caches ``[num_pages, page_size, Hkv, D]``, in the pages ``page_ids``
    (int32, at least as many as the tokens take). ``prefix_parts`` are the lengths that the prefix is cut
    into, by default one. ``expand_kv`` repeats K and V for every q head instead of leaving the groups to
    cuDNN. The result is written to ``out`` if given. Raises ValueError for arguments that do not fit.
    """
    group = check_caches(q, k_cache, v_cache, page_ids[None], scoring.scale)
    check_scoring(scoring, CAN, q.shape[1], "attend_long")
    parts = [num_prefix] if prefix_parts is None and num_prefix else list(prefix_parts or ())
    if sum(parts) != num_prefix or any(part < 1 for part in parts):
        raise ValueError(f"prefix_parts are {parts}; they must be positive and add up to {num_prefix}.")
    keys, values = gather_pages(
        k_cache, v_cache, page_ids, num_prefix + len(q), repeats=group if expand_kv else 1
    )
    scale = scoring.scale
    result, lse = _cudnn_attention(q, keys[num_prefix:], values[num_prefix:], scale, causal=True)
    if not parts:
        return result if out is None else out.copy_(result)
    end = num_prefix
    for index, part in enumerate(reversed(parts)):
        own, own_lse = _cudnn_attention(
            q, keys[end - part : end], values[end - part : end], scale, causal=False
        )
        end -= part
        into = result if out is None or index < len(parts) - 1 else out
        result = merge_pair(result, lse, own, own_lse, out=into)
    return result


def _cudnn_attention(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float, *, causal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention ``[n, Hq, D]`` of q to keys and values ``[m, H, D]``; its natural log-sum-exp ``[Hq, n]``.

    Causal means that token i sees the keys up to i. The log-sum-exp is always asked for: leaving it out would
    be one more execution plan for the same lengths.
    """
    if q.is_meta:  # torch would load a good deal of Python to work out the shapes
        lse = torch.empty(q.shape[1::-1], dtype=torch.float32, device=q.device)
        return torch.empty(q.shape, dtype=q.dtype, device=q.device), lse
    q, keys, values = (tensor[None].transpose(1, 2) for tensor in (q, keys, values))
    out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        q, keys, values, None, True, 0.0, causal, False, scale=scale
    )
    return out[0].transpose(0, 1), lse[0].view(lse.shape[1], lse.shape[2])  # [1, Hq, n, 1]


def gather_pages(
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    page_ids: torch.Tensor,
    num_tokens: int,
    *,
    repeats: int = 1,
    block: int = 4096,
    num_warps: int = 4,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return K and V, ``[num_tokens, Hkv * repeats, D]`` each, of the first tokens in the pages ``page_ids``.

    The caches are ``[num_pages, page_size, Hkv, D]``; page_ids, int32 on their device, are trusted to exist.
    Each head is repeated ``repeats`` times in a row. ``block`` is the elements of K, and as many of V, that a
    program moves. Raises ValueError if page_ids are too few, or not contiguous int32.
    """
    _, page_size, num_heads, head_dim = k_cache.shape
    used = triton.cdiv(num_tokens, page_size)
    fits = page_ids.dim() == 1 and page_ids.dtype is torch.int32 and page_ids.is_contiguous()
    if not fits or len(page_ids) < used:
        raise ValueError(
            f"page_ids is {list(page_ids.shape)} {page_ids.dtype}; {num_tokens} tokens in pages of"
            f" {page_size} need at least [{used}] int32, contiguous."
        )
    shape = (2, used * page_size, num_heads * repeats, head_dim)
    dense = torch.empty(shape, dtype=k_cache.dtype, device=k_cache.device)
    size = page_size * num_heads * head_dim
    blocks = triton.cdiv(size, block)
    if used:
        _gather_kernel[(used * blocks,)](
            dense[0],
            dense[1],
            k_cache,
            v_cache,
            page_ids,
            SIZE=size,
            HEAD_DIM=head_dim,
            REPEATS=repeats,
            BLOCKS=blocks,
            BLOCK=block,
            num_warps=num_warps,
        )
    return dense[0, :num_tokens], dense[1, :num_tokens]


def merge_pair(
    first: torch.Tensor,
    first_lse: torch.Tensor,
    second: torch.Tensor,
    second_lse: torch.Tensor,
    *,
    out: torch.Tensor,
    block: int = 16,
    num_warps: int = 4,
) -> torch.Tensor:
    """Merge attention over two disjoint sets of keys into ``out`` and return it; all ``[n, Hq, D]``.

    first_lse and second_lse ``[Hq, n]`` fp32 are finite natural log-sum-exps; first_lse becomes that of the
    merged result, and out may be ``first``. ``block``: vectors of a program. Raises ValueError for shapes,
    dtypes or strides that do not fit.
    """
    tokens, num_heads, head_dim = first.shape
    if not first.shape == second.shape == out.shape or not first.dtype == second.dtype == out.dtype:
        got = ", ".join(f"{list(tensor.shape)} {tensor.dtype}" for tensor in (first, second, out))
        raise ValueError(f"first, second and out are {got}; they must be alike.")
    if not first_lse.shape == second_lse.shape == (num_heads, tokens):
        raise ValueError(
            f"The log-sum-exps are {list(first_lse.shape)} and {list(second_lse.shape)};"
            f" both must be [{num_heads}, {tokens}]."
        )
    if not first_lse.dtype == second_lse.dtype == torch.float32:
        raise ValueError(f"The log-sum-exps are {first_lse.dtype} and {second_lse.dtype}, not float32.")
    if not first.stride(2) == second.stride(2) == out.stride(2) == 1:
        raise ValueError("first, second and out must be contiguous in their last dimension.")
    _merge_pair_kernel[(triton.cdiv(tokens * num_heads, block),)](
        out,
        first,
        second,
        first_lse,
        second_lse,
        tokens * num_heads,
        *out.stride()[:2],
        *first.stride()[:2],
        *second.stride()[:2],
        *first_lse.stride(),
        *second_lse.stride(),
        HEADS=num_heads,
        HEAD_DIM=head_dim,
        BLOCK_D=triton.next_power_of_2(head_dim),
        BLOCK=block,
        num_warps=num_warps,
    )
    return out


@jit(do_not_specialize_on_alignment=["page_ids"])
def _gather_kernel(
    k_out,
    v_out,
    k_cache,
    v_cache,
    page_ids,
    SIZE: tl.constexpr,  # elements of a page
    HEAD_DIM: tl.constexpr,
    REPEATS: tl.constexpr,
    BLOCKS: tl.constexpr,  # programs of a page
    BLOCK: tl.constexpr,
):
    ordinal = tl.program_id(0) // BLOCKS
    page = tl.load(page_ids + ordinal).to(tl.int64)
    element = tl.program_id(0) % BLOCKS * BLOCK + tl.arange(0, BLOCK)
    mask = element < SIZE
    keys = tl.load(k_cache + page * SIZE + element, mask=mask)
    values = tl.load(v_cache + page * SIZE + element, mask=mask)
    base = ordinal.to(tl.int64) * (SIZE * REPEATS)
    for repeat in tl.static_range(REPEATS):
        if REPEATS == 1:
            place = element
        else:
            place = (element // HEAD_DIM * REPEATS + repeat) * HEAD_DIM + element % HEAD_DIM
        tl.store(k_out + base + place, keys, mask=mask)
        tl.store(v_out + base + place, values, mask=mask)


@jit(do_not_specialize=["num_vectors"])
def _merge_pair_kernel(
    out,
    first,
    second,
    first_lse,
    second_lse,
    num_vectors,
    out_stride_token,
    out_stride_head,
    first_stride_token,
    first_stride_head,
    second_stride_token,
    second_stride_head,
    first_lse_stride_head,
    first_lse_stride_token,
    second_lse_stride_head,
    second_lse_stride_token,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    vectors = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = vectors < num_vectors
    token = (vectors // HEADS).to(tl.int64)
    head = vectors % HEADS
    first_place = first_lse + token * first_lse_stride_token + head * first_lse_stride_head
    lse = tl.load(first_place, mask=valid, other=0.0)
    other = tl.load(
        second_lse + token * second_lse_stride_token + head * second_lse_stride_head, mask=valid, other=0.0
    )
    # Both weights by the same two exponentials, neither of which can overflow.
    top = tl.maximum(lse, other)
    first_weight = tl.exp(lse - top)
    second_weight = tl.exp(other - top)
    total = first_weight + second_weight
    dims = tl.arange(0, BLOCK_D)
    mask = valid[:, None] & (dims < HEAD_DIM)[None, :]
    places = (token * first_stride_token + head * first_stride_head)[:, None] + dims[None, :]
    a = tl.load(first + places, mask=mask, other=0.0).to(tl.float32)
    places = (token * second_stride_token + head * second_stride_head)[:, None] + dims[None, :]
    b = tl.load(second + places, mask=mask, other=0.0).to(tl.float32)
    merged = a * (first_weight / total)[:, None] + b * (second_weight / total)[:, None]
    places = (token * out_stride_token + head * out_stride_head)[:, None] + dims[None, :]
    tl.store(out + places, merged.to(out.dtype.element_ty), mask=mask)
    tl.store(first_place, top + tl.log(total), mask=valid)
