"""Edits of logits before a token is chosen, in place: penalties and allowed-token masks."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .jit import jit

_PROGRAMS_PER_ROW = 16
# Above any count of occurrences: marks a token that the prompt or the output has.
_SEEN = tl.constexpr(1 << 30)


@jit(do_not_specialize=["has_index", "tokens_stride"])
def _count_tokens(
    tokens,
    tokens_stride,
    index,
    slots,
    prompt_lens,
    positions,
    marks,
    vocab,
    has_index,
    PROGRAMS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Per token of the row: how often the output has it, plus the mark. Grid (asking rows, programs)."""
    asking = tl.program_id(0).to(tl.int64)
    row = asking
    if has_index:
        row = tl.load(index + asking)
    length = tl.load(positions + row).to(tl.int32)
    prompt = tl.load(prompt_lens + asking)
    history = tokens + tl.load(slots + asking) * tokens_stride
    # the grid cannot know the length, so a few programs stride over it: the work is the row's own length
    for start in range(tl.program_id(1) * BLOCK, length, PROGRAMS * BLOCK):
        columns = start + tl.arange(0, BLOCK)
        present = columns < length
        token = tl.load(history + columns, mask=present, other=0).to(tl.int64)
        place = marks + asking * vocab + token
        tl.atomic_add(place, 1, mask=present & (columns >= prompt), sem="relaxed")
        tl.atomic_or(place, _SEEN, mask=present, sem="relaxed")


@jit(do_not_specialize=["has_index"])
def _penalize(
    logits,
    stride,
    index,
    marks,
    vocab,
    frequency,
    presence,
    repetition,
    has_index,
    BLOCK: tl.constexpr,
):
    """The formula, at the marked tokens. Grid (asking rows, blocks)."""
    asking = tl.program_id(0).to(tl.int64)
    row = asking
    if has_index:
        row = tl.load(index + asking)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mark = tl.load(marks + asking * vocab + columns, mask=columns < vocab, other=0)
    seen = mark >= _SEEN
    x = tl.load(logits + row * stride + columns, mask=seen, other=0.0)
    count = (mark & (_SEEN - 1)).to(tl.float32)
    x -= tl.load(frequency + asking) * count
    x -= tl.where(count > 0, tl.load(presence + asking), 0.0)
    factor = tl.load(repetition + asking)
    x = tl.where(x > 0, x / factor, x * factor)
    tl.store(logits + row * stride + columns, x, mask=seen)


@jit
def _mask(logits, stride, words, words_stride, vocab, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < vocab
    word = tl.load(words + row * words_stride + columns // 32, mask=inside, other=-1)
    forbidden = ((word >> (columns % 32)) & 1) == 0
    tl.store(logits + row * stride + columns, float("-inf"), mask=inside & forbidden)


def apply_penalties(
    logits: torch.Tensor,
    index: torch.Tensor | None,
    slots: torch.Tensor,
    prompt_lens: torch.Tensor,
    frequency: torch.Tensor,
    presence: torch.Tensor,
    repetition: torch.Tensor,
    positions: torch.Tensor,
    tokens: torch.Tensor,
    *,
    marks: torch.Tensor | None = None,
    count_block: int = 256,
    block: int = 1024,
    num_warps: int = 4,
) -> None:
    """Apply presence, frequency, then repetition penalties in place, as ``sampling.penalties`` defines them.

    Reads as much of the token table as the rows are long, without asking the device how long that is.

    Args:
        logits: [B, V] fp32.
        index: [R] int64, the rows that ask, or None for all of them.
        slots, prompt_lens: [R] int64.
        frequency, presence, repetition: [R] or [R, 1] fp32.
        positions: [B] int64, number of tokens each row has.
        tokens: [num_slots, max_tokens] integer table.
        marks: [R, V] int32 to work in, overwritten; allocated if None.
        count_block, block: tokens per program while counting and while editing, powers of two.

    Raises ValueError if ``logits`` is not fp32 with dense rows.
    """
    _check_logits(logits)
    num_rows, vocab = slots.numel(), logits.shape[1]
    if num_rows == 0:
        return
    if marks is None:
        marks = torch.empty(num_rows, vocab, dtype=torch.int32, device=logits.device)
    marks.zero_()
    rows = slots if index is None else index  # not read if there is none
    _count_tokens[(num_rows, _PROGRAMS_PER_ROW)](
        tokens,
        tokens.stride(0),
        rows,
        slots,
        prompt_lens,
        positions,
        marks,
        vocab,
        int(index is not None),
        PROGRAMS=_PROGRAMS_PER_ROW,
        BLOCK=count_block,
        num_warps=num_warps,
    )
    _penalize[(num_rows, triton.cdiv(vocab, block))](
        logits,
        logits.stride(0),
        rows,
        marks,
        vocab,
        frequency,
        presence,
        repetition,
        int(index is not None),
        BLOCK=block,
        num_warps=num_warps,
    )


def mask_disallowed(
    logits: torch.Tensor, allowed_mask: torch.Tensor, *, block: int = 2048, num_warps: int = 4
) -> None:
    """Set tokens whose bit is 0 to -inf, in place.

    logits [B, V] fp32; allowed_mask [B, ceil(V / 32)] int32, bit ``t % 32`` of word ``t // 32`` allows token
    ``t``. Raises ValueError if the sizes do not fit.
    """
    _check_logits(logits)
    num_rows, vocab = logits.shape
    words = triton.cdiv(vocab, 32)
    if allowed_mask.shape[0] != num_rows or allowed_mask.shape[1] < words or allowed_mask.stride(1) != 1:
        raise ValueError(
            f"mask_disallowed got a mask {list(allowed_mask.shape)} for logits {list(logits.shape)};"
            f" it takes dense int32 rows [{num_rows}, {words}]."
        )
    if num_rows:
        _mask[(num_rows, triton.cdiv(vocab, block))](
            logits,
            logits.stride(0),
            allowed_mask,
            allowed_mask.stride(0),
            vocab,
            BLOCK=block,
            num_warps=num_warps,
        )


def _check_logits(logits: torch.Tensor) -> None:
    if logits.dtype != torch.float32 or logits.dim() != 2 or logits.stride(1) != 1:
        raise ValueError(
            f"Edits of logits got {logits.dtype} {list(logits.shape)} with strides {list(logits.stride())};"
            " they take torch.float32 [B, V] with dense rows."
        )
