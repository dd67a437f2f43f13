"""Which tokens of a row may be drawn, on the GPU: sets of tokens as bits, like masks of allowed tokens."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .jit import jit


@jit(do_not_specialize=["has_index", "has_lowest"])
def _pack(
    values,
    stride,
    vocab,
    index,
    lowest,
    last,
    words,
    num_words,
    has_index,
    has_lowest,
    WORDS: tl.constexpr,
):
    """Bits of ``WORDS`` words of a row. Grid (rows, blocks of words)."""
    place = tl.program_id(0).to(tl.int64)
    row = place
    if has_index:
        row = tl.load(index + place)
    word = tl.program_id(1) * WORDS + tl.arange(0, WORDS)
    bit = tl.arange(0, 32)
    columns = word[:, None] * 32 + bit[None, :]
    x = tl.load(values + row * stride + columns, mask=columns < vocab, other=float("-inf")).to(tl.float32)
    chosen = x > float("-inf")  # false of NaN
    if has_lowest:
        least = tl.load(lowest + place)
        chosen = ((x > least) | ((x == least) & (columns <= tl.load(last + place)))) & (columns < vocab)
    # no two of a word have a bit in common, so their sum is their union
    bits = tl.sum(chosen.to(tl.int32) << bit[None, :], 1)
    tl.store(words + place * num_words + word, bits, mask=word < num_words)


def pack_allowed(logits: torch.Tensor, index: torch.Tensor | None, *, block: int = 64) -> torch.Tensor:
    """The tokens that are not banned, of some rows of ``logits``.

    logits [B, V] bf16, fp16 or fp32, rows may be strided, -inf bans a token; index [R] int64, or None for
    all rows. Returns [R, ceil(V / 32)] int32: bit ``t % 32`` of word ``t // 32`` stands for token ``t``.
    ``block``: words per program, a power of two, for speed.
    """
    return _packed(logits, index, None, None, block)


def pack_kept(
    probs: torch.Tensor, lowest: torch.Tensor, last: torch.Tensor, *, block: int = 64
) -> torch.Tensor:
    """The beginning of the ranking (probability descending, then token id ascending) that ends at a token.

    probs [R, V] fp32; lowest [R] fp32 and last [R] int32, probability and id of that token. Returns as
    :func:`pack_allowed`.
    """
    return _packed(probs, None, lowest, last, block)


def _packed(
    values: torch.Tensor,
    index: torch.Tensor | None,
    lowest: torch.Tensor | None,
    last: torch.Tensor | None,
    block: int,
) -> torch.Tensor:
    values = values if values.stride(1) == 1 else values.contiguous()
    num_rows = len(values) if index is None else index.numel()
    vocab = values.shape[1]
    num_words = triton.cdiv(vocab, 32)
    words = torch.empty(num_rows, num_words, dtype=torch.int32, device=values.device)
    if num_rows:
        _pack[(num_rows, triton.cdiv(num_words, block))](
            values,
            values.stride(0),
            vocab,
            # not read if there is none, as those that stand in below
            torch.empty(1, dtype=torch.int64, device=values.device) if index is None else index,
            words.view(torch.float32) if lowest is None else lowest,
            words if last is None else last,
            words,
            num_words,
            int(index is not None),
            int(lowest is not None),
            WORDS=block,
            num_warps=4,
        )
    return words
