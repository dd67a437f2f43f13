"""One token per row from logits, greedy or by temperature: no sorting, no host syncs, no copy of the logits.

A token's probability is held as an integer, ``floor(exp((logit - highest) / T) * 2**42)``. Sums of integers
are the same in whatever order they are added, so a row's token depends on its logits, temperature, seed and
position alone: not on its batch, the block size or the number of warps. (Tokens less probable than 2**-42
times the most probable one are never drawn; all of them together are less than 2**-22 of a row.)

The random number is the SplitMix64 hash of (key, position) that ``sampling/seeds.py`` describes; the token
drawn is the one at which the running sum over token ids passes that fraction of the total. The CPU path draws
by the same rule from the same number, so both devices choose the same token unless rounding of the
probabilities moves a boundary across it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .jit import jit

MAX_VOCAB = 2**20
"""Widest row whose sum of fixed-point probabilities fits 63 bits."""

GREEDY, GREEDY_WITH_TOTAL, PLAIN, FILTERED = range(4)
"""Kinds of rows. All but GREEDY get a total; FILTERED rows get their token elsewhere."""

SCALE = 2.0**42
_SCALE = tl.constexpr(SCALE)
_PLAIN = tl.constexpr(PLAIN)


class RowDraw(NamedTuple):
    """What ``draw_rows`` found, per row.

    Attributes:
        token_ids: [B] int64; the most probable token in greedy and filtered rows.
        highest: [B] fp32, the highest logit.
        total: [B] int64, the sum of ``exp((logit - highest) / T)`` over the row, times ``SCALE``.
        uniform: [B] fp64 in [0, 1 - 2**-53], the row's random number.
        no_token: [B] uint8, 1 where the highest logit is -inf: there was nothing to choose from.

    ``total`` and ``uniform`` are undefined in GREEDY rows; ``total`` is 0 in rows without a finite highest
    logit (nothing allowed, or +inf), which get their most probable token. NaN counts as -inf.
    """

    token_ids: torch.Tensor
    highest: torch.Tensor
    total: torch.Tensor
    uniform: torch.Tensor
    no_token: torch.Tensor


@triton.jit
def load_logits(logits, row, stride, columns, vocab):
    """Logits [BLOCK] of a row in fp32; -inf past its end and for NaN."""
    x = tl.load(logits + row * stride + columns, mask=columns < vocab, other=0.0).to(tl.float32)
    return tl.where((columns < vocab) & (x == x), x, float("-inf"))


@triton.jit
def relative_probability(x, highest, inverse_temperature):
    """``exp((x - highest) / T)`` in [0, 1]; 0 everywhere if ``highest`` is infinite."""
    finite = tl.abs(highest) != float("inf")
    # infinity - infinity would be NaN
    x = tl.where(finite, x, float("-inf"))
    return tl.exp((x - tl.where(finite, highest, 0.0)) * inverse_temperature)


@triton.jit
def _fixed_point(x, highest, inverse_temperature):
    return (relative_probability(x, highest, inverse_temperature) * _SCALE).to(tl.int64)


@triton.jit
def _uniform(key, position):
    """``sampling.draw.uniforms``; its constants as signed integers, whose products wrap around alike."""
    bits = key + (position + 1) * -7046029254386353131
    # `>>` is arithmetic on signed integers; the masks make it logical
    bits = (bits ^ ((bits >> 30) & 0x3FFFFFFFF)) * -4658895280553007687
    bits = (bits ^ ((bits >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685
    bits = bits ^ ((bits >> 31) & 0x1FFFFFFFF)
    return ((bits >> 11) & 0x1FFFFFFFFFFFFF).to(tl.float64) * 1.1102230246251565e-16


@jit
def _block_maxima(logits, stride, vocab, block_max, block_arg, num_blocks, BLOCK: tl.constexpr):
    """Highest logit of each block and the lowest id that has it. Grid (rows, blocks)."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    columns = block * BLOCK + tl.arange(0, BLOCK)
    x = load_logits(logits, row, stride, columns, vocab)
    highest = tl.max(x, 0)
    tl.store(block_max + row * num_blocks + block, highest)
    tl.store(block_arg + row * num_blocks + block, tl.min(tl.where(x == highest, columns, 2147483647), 0))


@jit
def _block_sums(
    logits,
    stride,
    vocab,
    temperature,
    kinds,
    block_max,
    block_sum,
    num_blocks,
    BLOCK: tl.constexpr,
    PADDED: tl.constexpr,
):
    """Sum of the fixed-point probabilities of each block, in rows that need it. Grid (rows, blocks)."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    if tl.load(kinds + row) != 0:
        blocks = tl.arange(0, PADDED)
        maxima = tl.load(block_max + row * num_blocks + blocks, mask=blocks < num_blocks, other=float("-inf"))
        columns = block * BLOCK + tl.arange(0, BLOCK)
        x = load_logits(logits, row, stride, columns, vocab)
        mass = _fixed_point(x, tl.max(maxima, 0), 1.0 / tl.load(temperature + row))
        tl.store(block_sum + row * num_blocks + block, tl.sum(mass, 0))


@jit
def _finish(
    logits,
    stride,
    vocab,
    temperature,
    kinds,
    keys,
    positions,
    block_max,
    block_arg,
    block_sum,
    num_blocks,
    token_ids,
    highest_out,
    total_out,
    uniform_out,
    no_token_out,
    BLOCK: tl.constexpr,
    PADDED: tl.constexpr,
):
    """Find the block the draw falls into, then the token in it. Grid (rows,)."""
    row = tl.program_id(0).to(tl.int64)
    blocks = tl.arange(0, PADDED)
    present = blocks < num_blocks
    maxima = tl.load(block_max + row * num_blocks + blocks, mask=present, other=float("-inf"))
    args = tl.load(block_arg + row * num_blocks + blocks, mask=present, other=2147483647)
    highest = tl.max(maxima, 0)
    token = tl.min(tl.where(maxima == highest, args, 2147483647), 0).to(tl.int64)
    tl.store(highest_out + row, highest)
    tl.store(no_token_out + row, (highest == float("-inf")).to(tl.uint8))
    kind = tl.load(kinds + row)
    if kind != 0:
        sums = tl.load(block_sum + row * num_blocks + blocks, mask=present, other=0)
        total = tl.sum(sums, 0)
        uniform = _uniform(tl.load(keys + row), tl.load(positions + row))
        tl.store(total_out + row, total)
        tl.store(uniform_out + row, uniform)
        if (kind == _PLAIN) & (total > 0):
            # below the total by choice of `uniform`, but for the rounding of `total` to fp64
            target = tl.minimum((uniform * total.to(tl.float64)).to(tl.int64), total - 1)
            block = tl.sum(((tl.cumsum(sums, 0) <= target) & present).to(tl.int32), 0)
            before = tl.sum(tl.where(blocks < block, sums, 0), 0)
            columns = block * BLOCK + tl.arange(0, BLOCK)
            x = load_logits(logits, row, stride, columns, vocab)
            mass = _fixed_point(x, highest, 1.0 / tl.load(temperature + row))
            passed = (tl.cumsum(mass, 0) + before <= target).to(tl.int32)
            # _block_sums computed the same masses, bit for bit; were it ever not so, the id stays an id
            token = tl.minimum(block * BLOCK + tl.sum(passed, 0), vocab - 1).to(tl.int64)
    tl.store(token_ids + row, token)


def draw_rows(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    kinds: torch.Tensor,
    keys: torch.Tensor,
    positions: torch.Tensor,
    *,
    block: int = 4096,
    num_warps: int = 8,
) -> RowDraw:
    """Choose each row's token by its kind, in two passes over the logits (one for GREEDY rows).

    Args:
        logits: [B, V] bf16, fp16 or fp32, rows may be strided; -inf bans a token.
        temperature: [B] or [B, 1] fp32, in [1e-6, 1e30].
        kinds: [B] int32, one of GREEDY, GREEDY_WITH_TOTAL, PLAIN, FILTERED.
        keys: [B] int64 from ``stream_key``; not read in GREEDY rows.
        positions: [B] int64, index of the token being sampled.
        block: tokens per program, a power of two; changes the speed, never the result.

    Raises ValueError if V is above ``MAX_VOCAB`` or the sizes differ.
    """
    check_sizes(logits, temperature=temperature, kinds=kinds, keys=keys, positions=positions)
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    num_rows, vocab = logits.shape
    num_blocks = triton.cdiv(vocab, block)
    padded = triton.next_power_of_2(num_blocks)

    def empty(dtype: torch.dtype, *shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=logits.device)

    block_max = empty(torch.float32, num_rows, num_blocks)
    block_arg = empty(torch.int32, num_rows, num_blocks)
    block_sum = empty(torch.int64, num_rows, num_blocks)
    out = RowDraw(
        empty(torch.int64, num_rows),
        empty(torch.float32, num_rows),
        empty(torch.int64, num_rows),
        empty(torch.float64, num_rows),
        empty(torch.uint8, num_rows),
    )
    if num_rows == 0:
        return out
    stride, grid = logits.stride(0), (num_rows, num_blocks)
    _block_maxima[grid](
        logits, stride, vocab, block_max, block_arg, num_blocks, BLOCK=block, num_warps=num_warps
    )
    _block_sums[grid](
        logits,
        stride,
        vocab,
        temperature,
        kinds,
        block_max,
        block_sum,
        num_blocks,
        BLOCK=block,
        PADDED=padded,
        num_warps=num_warps,
    )
    _finish[(num_rows,)](
        logits,
        stride,
        vocab,
        temperature,
        kinds,
        keys,
        positions,
        block_max,
        block_arg,
        block_sum,
        num_blocks,
        *out,
        BLOCK=block,
        PADDED=padded,
        num_warps=num_warps,
    )
    return out


def check_sizes(logits: torch.Tensor, **per_row: torch.Tensor) -> None:
    """Raise ValueError unless logits are [B, V <= MAX_VOCAB] and the others contiguous with B elements."""
    if logits.dim() != 2 or logits.shape[1] > MAX_VOCAB:
        raise ValueError(f"Sampling got logits {list(logits.shape)}; it takes [B, V] with V <= {MAX_VOCAB}.")
    for name, values in per_row.items():
        if values.numel() != logits.shape[0] or not values.is_contiguous():
            raise ValueError(
                f"Sampling got {name} {list(values.shape)} with strides {list(values.stride())} for"
                f" {logits.shape[0]} rows of logits; it takes one contiguous element per row."
            )
