"""top-k, top-p and min-p on the GPU: the draw of ``sampling/filters.py`` without sorting or host syncs.

All three rules keep a beginning of the ranking (probability descending, then token id ascending), so the kept
set is one value ``v`` and how many of the tokens that have exactly that value are kept. Probabilities are not
negative, so their bit patterns are ordered as they are and ``v`` is found by bisection over bit patterns:
"a token of value v, were it the first of its equals, is kept" holds from some v on upwards. The draw is the
same search once more: the last token kept by a top-p of (uniform number * kept mass).

Bisecting whole rows would read them some 60 times, so three kernels share the work:

1. *survey*, by blocks: how many tokens, and what mass, reach each of eight powers of two;
2. *gather*, by blocks: from these, the highest power of two that surely lies below the cut, and all tokens
   that reach it, in id order, into a list (the whole row if the cut lies below all eight);
3. *choose*, one program per row: the searches, over the list. Usually it has a few hundred tokens.

Masses are fp64 multiples of 2**-52 (``sampling.draw.exact_masses``), whose sums are exact: the result is a
function of the row and of nothing else, equal bit for bit to ``draw_by_sorting``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .jit import jit
from .sample_kept import pack_kept
from .sampling import SCALE, check_sizes, load_logits, relative_probability

NO_CUT, TOP_P_CUT, KEPT_CUT = range(3)
"""Which rules the mass and the number of kept tokens are by: none, top-p alone, all of them."""

_TOP_P_CUT, _KEPT_CUT = tl.constexpr(TOP_P_CUT), tl.constexpr(KEPT_CUT)
_SCALE = tl.constexpr(SCALE)
# Pivots 2**-4, 2**-6, ..., 2**-18: a list cut at 2**-10 has at most 1024 tokens, one at 2**-18 most of a row.
_PIVOTS = tl.constexpr(8)


@triton.jit
def _mass_of_bits(bits):
    """A bit pattern of fp32 in [0, 1] as the nearest multiple of 2**-52, in fp64: sums below 2 are exact.

    Written out again in the inner loops, since Triton's interpreter takes long over calls.
    """
    return (bits.to(tl.float32, bitcast=True).to(tl.float64) + 1.0) - 1.0


@triton.jit
def _pivot_bits(j):
    """The bit pattern of 2**-(4 + 2 * j)."""
    return (123 - j * 2) << 23


@jit(do_not_specialize=["has_index"])
def _probabilities(
    logits,
    stride,
    vocab,
    index,
    temperature,
    highest,
    total,
    out,
    has_index,
    BLOCK: tl.constexpr,
):
    """Softmax of some rows of the logits, from their sums. Grid (chosen rows, blocks)."""
    target = tl.program_id(0).to(tl.int64)
    row = target
    if has_index:
        row = tl.load(index + target)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    x = load_logits(logits, row, stride, columns, vocab)
    share = relative_probability(x, tl.load(highest + row), 1.0 / tl.load(temperature + row))
    # a total of 0 goes with shares of 0
    whole = tl.maximum(tl.load(total + row), 1).to(tl.float64)
    scale = (tl.full([], _SCALE, tl.float64) / whole).to(tl.float32)
    tl.store(out + target * vocab + columns, share * scale, mask=columns < vocab)


@jit
def _survey(probs, vocab, block_top, counts, masses, num_blocks, BLOCK: tl.constexpr):
    """Count and mass of the tokens of each block that reach each pivot. Grid (rows, blocks)."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    columns = block * BLOCK + tl.arange(0, BLOCK)
    p = tl.load(probs + row * vocab + columns, mask=columns < vocab, other=0.0)
    bits = p.to(tl.int32, bitcast=True)
    mass = _mass_of_bits(bits)
    at = row * num_blocks + block
    tl.store(block_top + at, tl.max(bits, 0))
    for j in tl.static_range(_PIVOTS):
        reached = bits >= _pivot_bits(j)
        tl.store(counts + at * _PIVOTS + j, tl.sum(reached.to(tl.int32), 0))
        tl.store(masses + at * _PIVOTS + j, tl.sum(tl.where(reached, mass, 0.0), 0))


@jit
def _gather(
    probs,
    vocab,
    block_top,
    counts,
    masses,
    num_blocks,
    top_k,
    top_p,
    min_p,
    cut,
    list_bits,
    list_ids,
    list_info,
    BLOCK: tl.constexpr,
    PADDED: tl.constexpr,
):
    """Write the tokens that may be kept to the row's list, in id order. Grid (rows, blocks).

    ``list_info`` [R, 3] int32: length, highest bit pattern, lowest bit pattern that a listed token may have.
    """
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    blocks = tl.arange(0, PADDED)
    pivots = tl.arange(0, _PIVOTS)
    present = blocks < num_blocks
    tile = (row * num_blocks + blocks[:, None]) * _PIVOTS + pivots[None, :]
    tile_counts = tl.load(counts + tile, mask=present[:, None], other=0)
    count = tl.sum(tile_counts, 0)
    mass = tl.sum(tl.load(masses + tile, mask=present[:, None], other=0.0), 0)
    top = tl.max(tl.load(block_top + row * num_blocks + blocks, mask=present, other=0), 0)

    # A pivot is low enough if some rule drops everything below it, for no token survives any rule's veto;
    # where what top-p alone keeps is wanted, top-p must be that rule.
    pivot_bits = _pivot_bits(pivots)
    enough = mass > tl.load(top_p + row)
    by_rank = count.to(tl.int64) >= tl.load(top_k + row)
    by_ratio = _mass_of_bits(pivot_bits) < tl.load(min_p + row) * _mass_of_bits(top)
    enough = enough | ((by_rank | by_ratio) & (tl.load(cut + row) != _TOP_P_CUT))
    pivot = tl.min(tl.where(enough, pivots, _PIVOTS), 0)

    is_pivot = pivots[None, :] == pivot
    earlier = tl.where(is_pivot & (blocks[:, None] < block), tile_counts, 0)
    before = tl.sum(tl.sum(earlier, 1), 0)
    length = tl.sum(tl.where(pivots == pivot, count, 0), 0)
    least = tl.sum(tl.where(pivots == pivot, pivot_bits, 0), 0)
    whole = pivot == _PIVOTS
    before = tl.where(whole, block * BLOCK, before)
    length = tl.where(whole, vocab, length)

    columns = block * BLOCK + tl.arange(0, BLOCK)
    p = tl.load(probs + row * vocab + columns, mask=columns < vocab, other=0.0)
    bits = p.to(tl.int32, bitcast=True)
    listed = (bits >= least) & (columns < vocab)
    place = row * vocab + before + tl.cumsum(listed.to(tl.int32), 0) - 1
    tl.store(list_bits + place, bits, mask=listed)
    tl.store(list_ids + place, columns, mask=listed)
    if block == 0:
        tl.store(list_info + row * 3, length)
        tl.store(list_info + row * 3 + 1, top)
        tl.store(list_info + row * 3 + 2, least)


@triton.jit
def _above(list_bits, length, pivot, BLOCK: tl.constexpr):
    """(count int64, mass fp64) of the listed tokens whose bit pattern is above ``pivot``."""
    count = tl.full([BLOCK], 0, tl.int32)
    mass = tl.full([BLOCK], 0.0, tl.float64)
    for start in range(0, length, BLOCK):
        place = start + tl.arange(0, BLOCK)
        bits = tl.load(list_bits + place, mask=place < length, other=0)
        above = (bits > pivot) & (place < length)
        count += above.to(tl.int32)
        mass += tl.where(above, (bits.to(tl.float32, bitcast=True).to(tl.float64) + 1.0) - 1.0, 0.0)
    return tl.sum(count, 0).to(tl.int64), tl.sum(mass, 0)


@triton.jit
def _cut(list_bits, length, low, high, max_count, max_mass, min_mass, BLOCK: tl.constexpr):
    """The last token kept if a token stays while fewer than ``max_count`` tokens and at most ``max_mass``
    come before it, and its own mass is at least ``min_mass``.

    ``low``: a bit pattern too low to be kept, or -1; ``high``: one that is kept. Returns (its bit pattern,
    how many tokens have a higher one, the mass of these, how many tokens of exactly this pattern are kept).
    """
    while high - low > 1:
        middle = low + (high - low) // 2
        count, mass = _above(list_bits, length, middle, BLOCK)
        own = (middle.to(tl.float32, bitcast=True).to(tl.float64) + 1.0) - 1.0
        kept = (count < max_count) & (mass <= max_mass) & (own >= min_mass)
        high = tl.where(kept, middle, high)
        low = tl.where(kept, low, middle)
    count, mass = _above(list_bits, length, high, BLOCK)
    with_equals, _ = _above(list_bits, length, high - 1, BLOCK)
    value = _mass_of_bits(high)
    # Equal number j (from 0) stays while mass + j * value <= max_mass. Multiples of value below 2 are fp64
    # numbers, and so is max_mass - mass: a quotient that is not an integer is never rounded up to one.
    quotient = (max_mass - mass) / tl.where(value > 0.0, value, 1.0)
    fits = tl.minimum(tl.where(value > 0.0, quotient, 1073741824.0), 1073741824.0).to(tl.int64)
    equals = tl.minimum(with_equals - count, tl.minimum(fits + 1, max_count - count))
    return high, count, mass, equals


@triton.jit
def _equal(list_bits, list_ids, length, bits, place, BLOCK: tl.constexpr):
    """The id of number ``place`` (from 1) of the listed tokens that have exactly this bit pattern."""
    seen = tl.full([], 0, tl.int32)
    token = tl.full([], 0, tl.int32)
    for start in range(0, length, BLOCK):
        at = start + tl.arange(0, BLOCK)
        equal = (tl.load(list_bits + at, mask=at < length, other=0) == bits) & (at < length)
        rank = seen + tl.cumsum(equal.to(tl.int32), 0)
        ids = tl.load(list_ids + at, mask=at < length, other=0)
        token += tl.sum(tl.where(equal & (rank == place), ids, 0), 0)
        seen += tl.sum(equal.to(tl.int32), 0)
    return token


@jit(do_not_specialize=["want_kept"])
def _choose(
    list_bits,
    list_ids,
    list_info,
    vocab,
    uniform,
    top_k,
    top_p,
    min_p,
    cut,
    token_ids,
    mass_out,
    count_out,
    lowest_out,
    last_out,
    want_kept,
    BLOCK: tl.constexpr,
):
    """Draw from the list. Grid (rows,)."""
    row = tl.program_id(0).to(tl.int64)
    length = tl.load(list_info + row * 3)
    top = tl.load(list_info + row * 3 + 1)
    low = tl.load(list_info + row * 3 + 2) - 1
    list_bits += row * vocab
    list_ids += row * vocab
    mass_limit = tl.load(top_p + row)
    no_limit = length.to(tl.int64) + 1

    least_mass = tl.load(min_p + row) * _mass_of_bits(top)
    high, count, mass, equals = _cut(
        list_bits, length, low, top, tl.load(top_k + row), mass_limit, least_mass, BLOCK
    )
    kept_mass = mass + equals.to(tl.float64) * _mass_of_bits(high)

    share = tl.full([], 1.0, tl.float64)
    size = tl.full([], 0, tl.int64) + vocab
    by = tl.load(cut + row)
    if by == _TOP_P_CUT:
        edge, n, m, same = _cut(list_bits, length, low, high, no_limit, mass_limit, 0.0, BLOCK)
        share = m + same.to(tl.float64) * _mass_of_bits(edge)
        size = n + same
    if by == _KEPT_CUT:
        share = kept_mass
        size = count + equals
    tl.store(mass_out + row, share)
    tl.store(count_out + row, size)
    if want_kept:
        tl.store(lowest_out + row, high)
        tl.store(last_out + row, _equal(list_bits, list_ids, length, high, equals, BLOCK))

    # uniform <= 1 - 2**-53, so the product is below the kept mass even after rounding
    target = tl.load(uniform + row) * kept_mass
    drawn, _, _, place = _cut(list_bits, length, high - 1, top, no_limit, target, 0.0, BLOCK)
    place = tl.where(kept_mass > 0.0, place, 1)  # no mass at all: the first token
    tl.store(token_ids + row, _equal(list_bits, list_ids, length, drawn, place, BLOCK).to(tl.int64))


def softmax_rows(
    logits: torch.Tensor,
    index: torch.Tensor | None,
    temperature: torch.Tensor,
    highest: torch.Tensor,
    total: torch.Tensor,
    *,
    block: int = 4096,
    num_warps: int = 8,
) -> torch.Tensor:
    """Return ``softmax(logits[index] / temperature[index])`` [R, V] fp32 from what ``draw_rows`` summed up.

    logits [B, V] bf16, fp16 or fp32; index [R] int64, or None for all rows; temperature [B] or [B, 1] fp32;
    highest [B] fp32 and total [B] int64 as in ``RowDraw``. A row with a total of 0 becomes zeros.
    Raises ValueError if sizes differ.
    """
    check_sizes(logits, temperature=temperature, highest=highest, total=total)
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    vocab = logits.shape[1]
    num_rows = logits.shape[0] if index is None else index.numel()
    out = torch.empty(num_rows, vocab, dtype=torch.float32, device=logits.device)
    if num_rows:
        _probabilities[(num_rows, triton.cdiv(vocab, block))](
            logits,
            logits.stride(0),
            vocab,
            total if index is None else index,  # not read if there is none
            temperature,
            highest,
            total,
            out,
            int(index is not None),
            BLOCK=block,
            num_warps=num_warps,
        )
    return out


def draw_filtered(
    probs: torch.Tensor,
    uniform: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    cut: torch.Tensor,
    *,
    want_kept: bool = False,
    block: int = 2048,
    num_warps: int = 4,
    choose_block: int = 1024,
    choose_warps: int = 4,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Draw one token per row among those that top-k, top-p and min-p keep.

    Args:
        probs: [R, V] fp32, contiguous, each row a distribution (sum below 2) without NaN.
        uniform: [R] fp64 in [0, 1 - 2**-53].
        top_k: [R] int64, V or more if off.
        top_p: [R] fp64, infinity if off.
        min_p: [R] fp64, 0 if off.
        cut: [R] uint8, which tokens the second and third result are of: ``TOP_P_CUT``, those that top-p alone
            keeps; ``KEPT_CUT``, those that all rules keep; ``NO_CUT``, all of them.
        want_kept: the last result is wanted.
        block, num_warps: of the passes over whole rows; choose_block, choose_warps: of the one over lists.
            They change the speed, never the result.

    The rules may be [R, 1] as well.

    Returns:
        token_ids [R] int64; the probability [R] fp64 and the number [R] int64 of the tokens that ``cut``
        names (1 and V of all); which tokens all rules keep, [R, ceil(V / 32)] int32 as in
        ``pack_allowed``, or None. A row of zeros yields token 0.

    Raises ValueError if sizes differ or ``probs`` is not contiguous fp32.
    """
    if probs.dtype != torch.float32 or not probs.is_contiguous():
        raise ValueError(f"draw_filtered got probs of {probs.dtype}; it takes contiguous torch.float32.")
    check_sizes(probs, uniform=uniform, top_k=top_k, top_p=top_p, min_p=min_p, cut=cut)
    num_rows, vocab = probs.shape
    num_blocks = triton.cdiv(vocab, block)

    def empty(dtype: torch.dtype, *shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=probs.device)

    token_ids, count = empty(torch.int64, num_rows), empty(torch.int64, num_rows)
    mass = empty(torch.float64, num_rows)
    if num_rows == 0:
        return token_ids, mass, count, empty(torch.int32, 0, triton.cdiv(vocab, 32)) if want_kept else None
    block_top = empty(torch.int32, num_rows, num_blocks)
    counts = empty(torch.int32, num_rows, num_blocks, _PIVOTS.value)
    masses = empty(torch.float64, num_rows, num_blocks, _PIVOTS.value)
    list_bits, list_ids = empty(torch.int32, num_rows, vocab), empty(torch.int32, num_rows, vocab)
    list_info = empty(torch.int32, num_rows, 3)
    lowest, last = (empty(torch.int32, num_rows if want_kept else 1) for _ in range(2))
    grid = (num_rows, num_blocks)
    _survey[grid](probs, vocab, block_top, counts, masses, num_blocks, BLOCK=block, num_warps=num_warps)
    _gather[grid](
        probs,
        vocab,
        block_top,
        counts,
        masses,
        num_blocks,
        top_k,
        top_p,
        min_p,
        cut,
        list_bits,
        list_ids,
        list_info,
        BLOCK=block,
        PADDED=triton.next_power_of_2(num_blocks),
        num_warps=num_warps,
    )
    _choose[(num_rows,)](
        list_bits,
        list_ids,
        list_info,
        vocab,
        uniform,
        top_k,
        top_p,
        min_p,
        cut,
        token_ids,
        mass,
        count,
        lowest,
        last,
        int(want_kept),
        BLOCK=choose_block,
        num_warps=choose_warps,
    )
    kept = pack_kept(probs, lowest.view(torch.float32), last) if want_kept else None
    return token_ids, mass, count, kept
