"""Log-probabilities on the GPU: which tokens of a row rank highest, and what tokens score.

``rank_tokens`` finds the tokens in the order of ``sampling.logprobs.top_tokens`` (value descending, equal
ones by lowest id, NaN first) without sorting: one pass keeps the best of each block, and then every rank
costs a look at the bests of all blocks and at the tokens of one. Since tokens are taken in that order, those
already taken are the ones that stand before or at the last: nothing needs to be marked.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .jit import jit
from .sampling import SCALE, check_sizes

_PER_TOTAL = tl.constexpr(1 / SCALE)  # a power of two: multiplying rounds nothing
_LOWEST = tl.constexpr(torch.finfo(torch.float32).min)
_NONE = tl.constexpr(-(2**31))  # below the key of -inf
_NAN = tl.constexpr(2**31 - 1)  # above the key of +inf


@triton.jit
def _keys(logits, columns, vocab):
    """Logits [BLOCK] as int32 in the same order, equal where they are; ``_NONE`` past the end of the row."""
    present = columns < vocab
    x = tl.load(logits + columns, mask=present, other=0.0).to(tl.float32)
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)  # -0.0 is 0.0
    # negative numbers: the larger the magnitude, the lower
    key = tl.where(x == x, bits ^ ((bits >> 31) & 0x7FFFFFFF), _NAN)
    return tl.where(present, key, _NONE)


@triton.jit
def _row(index, place, has_index):
    if has_index:
        place = tl.load(index + place)
    return place


@jit(do_not_specialize=["has_index"])
def _best_of_blocks(logits, stride, vocab, index, best, num_blocks, has_index, BLOCK: tl.constexpr):
    """The highest key of each block. Grid (chosen rows, blocks)."""
    place = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    columns = block * BLOCK + tl.arange(0, BLOCK)
    keys = _keys(logits + _row(index, place, has_index) * stride, columns, vocab)
    tl.store(best + place * num_blocks + block, tl.max(keys, 0))


@jit(do_not_specialize=["width", "has_index"])
def _rank(
    logits,
    stride,
    vocab,
    index,
    best,
    num_blocks,
    width,
    ids,
    has_index,
    BLOCK: tl.constexpr,
    PADDED: tl.constexpr,
):
    """One token after the other, the best of those that are left. Grid (chosen rows,)."""
    place = tl.program_id(0).to(tl.int64)
    logits += _row(index, place, has_index) * stride
    blocks = tl.arange(0, PADDED)
    left = tl.load(best + place * num_blocks + blocks, mask=blocks < num_blocks, other=_NONE)
    last = tl.full([], _NAN, tl.int32)
    token = tl.full([], -1, tl.int32)
    for rank in range(width):
        key = tl.max(left, 0)
        block = tl.min(tl.where(left == key, blocks, PADDED), 0)
        columns = block * BLOCK + tl.arange(0, BLOCK)
        keys = _keys(logits, columns, vocab)
        fresh = (keys < last) | (columns > token)  # of the tokens that have this key
        token = tl.min(tl.where((keys == key) & fresh, columns, 2147483647), 0)
        behind = (keys < key) | ((keys == key) & (columns > token))
        left = tl.where(blocks == block, tl.max(tl.where(behind, keys, _NONE), 0), left)
        last = key
        tl.store(ids + place * width + rank, token.to(tl.int64))


@jit(do_not_specialize=["width", "has_index", "has_nucleus"])
def _score(
    logits,
    stride,
    index,
    temperature,
    highest,
    total,
    token_ids,
    nucleus_mass,
    nucleus_count,
    top_ids,
    width,
    chosen_out,
    values_out,
    has_index,
    has_nucleus,
    BLOCK: tl.constexpr,
):
    """Log-probabilities of a row's own token and of its ``width`` others. Grid (chosen rows,)."""
    place = tl.program_id(0).to(tl.int64)
    row = _row(index, place, has_index)
    logits += row * stride
    top, heat = tl.load(highest + row), tl.load(temperature + row)
    log_total = tl.log(tl.load(total + row).to(tl.float64) * _PER_TOTAL)
    count = tl.full([], 2**62, tl.int64)
    if has_nucleus:
        log_total += tl.log(tl.load(nucleus_mass + row))
        count = tl.load(nucleus_count + row)
    offset = log_total.to(tl.float32)

    own = tl.load(logits + tl.load(token_ids + row)).to(tl.float32)
    score = tl.div_rn(own - top, heat) - offset  # rounded as torch's division is
    tl.store(chosen_out + place, tl.where(score < _LOWEST, _LOWEST, score))  # NaN stays
    for start in range(0, width, BLOCK):
        ranks = start + tl.arange(0, BLOCK)
        present = ranks < width
        x = tl.load(logits + tl.load(top_ids + place * width + ranks, mask=present, other=0)).to(tl.float32)
        values = tl.div_rn(x - top, heat + tl.zeros([BLOCK], tl.float32)) - offset
        values = tl.where((values < _LOWEST) | (ranks >= count), _LOWEST, values)
        tl.store(values_out + place * width + ranks, values, mask=present)


def rank_tokens(
    logits: torch.Tensor,
    index: torch.Tensor | None,
    width: int,
    *,
    block: int = 1024,
    num_warps: int = 4,
) -> torch.Tensor:
    """Ids [R, width] int64 of the highest ``logits[index]``, descending, equal ones by lowest id first.

    logits [B, V] bf16, fp16 or fp32, rows may be strided; index [R] int64, or None for all rows;
    1 <= width <= V. Takes some microseconds longer by each rank. ``block``: tokens looked at together, a
    power of two; it and ``num_warps`` change the speed, never the result.

    Raises ValueError if ``width`` is out of range.
    """
    vocab = logits.shape[1]
    if not 1 <= width <= vocab:
        raise ValueError(f"rank_tokens got width {width} for {vocab} tokens; it takes 1 to {vocab}.")
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    num_rows = len(logits) if index is None else index.numel()
    num_blocks = triton.cdiv(vocab, block)
    best = torch.empty(num_rows, num_blocks, dtype=torch.int32, device=logits.device)
    ids = torch.empty(num_rows, width, dtype=torch.int64, device=logits.device)
    if num_rows:
        chosen = ids if index is None else index  # not read if there is none
        some = int(index is not None)
        stride = logits.stride(0)
        _best_of_blocks[num_rows, num_blocks](
            logits, stride, vocab, chosen, best, num_blocks, some, BLOCK=block, num_warps=num_warps
        )
        _rank[(num_rows,)](
            logits,
            stride,
            vocab,
            chosen,
            best,
            num_blocks,
            width,
            ids,
            some,
            BLOCK=block,
            PADDED=triton.next_power_of_2(num_blocks),
            num_warps=num_warps,
        )
    return ids


def score_tokens(
    logits: torch.Tensor,
    index: torch.Tensor | None,
    temperature: torch.Tensor,
    highest: torch.Tensor,
    total: torch.Tensor,
    token_ids: torch.Tensor,
    nucleus: tuple[torch.Tensor, torch.Tensor] | None,
    top_ids: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-probabilities of some rows' tokens, from what ``draw_rows`` summed up.

    Args:
        logits: [B, V] bf16, fp16 or fp32, rows may be strided.
        index: [R] int64, or None for all rows.
        temperature: [B] or [B, 1] fp32.
        highest, total, token_ids: [B] as in ``RowDraw``.
        nucleus: [B] fp64 and [B] int64, mass and number of the tokens that top-p keeps; None: all of them.
        top_ids: [R, K] int64 of more tokens, descending; None for none.

    Returns:
        [R] fp32 of ``token_ids``, and [R, K] fp32 of ``top_ids`` or None: the lowest finite number in those
        that top-p drops, and nowhere less. Raises ValueError if sizes differ.
    """
    check_sizes(logits, temperature=temperature, highest=highest, total=total, token_ids=token_ids)
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    num_rows = len(logits) if index is None else index.numel()
    width = 0 if top_ids is None else top_ids.shape[1]
    chosen = torch.empty(num_rows, dtype=torch.float32, device=logits.device)
    values = None
    if top_ids is not None:
        values = torch.empty(top_ids.shape, dtype=torch.float32, device=logits.device)
    if num_rows:
        # not read if there is none, as all that stands in below
        mass, count = nucleus or (total.view(torch.float64), total)
        _score[(num_rows,)](
            logits,
            logits.stride(0),
            total if index is None else index,
            temperature,
            highest,
            total,
            token_ids,
            mass,
            count,
            total if top_ids is None else top_ids,
            width,
            chosen,
            chosen if values is None else values,
            int(index is not None),
            int(nucleus is not None),
            BLOCK=32,
            num_warps=1,
        )
    return chosen, values
