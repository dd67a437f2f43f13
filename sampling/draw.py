"""Drawing one token per row: uniform numbers keyed by (seed, position), and the inverse of a distribution.

Nothing here mixes rows, so a row draws the same token whatever batch it is in.
"""

from __future__ import annotations

import torch

from .batch import PLAIN
from .scratch import Scratch
from .seeds import GOLDEN, MULTIPLIERS, SHIFTS

_BLOCK = 128


def most_probable(logits: torch.Tensor) -> torch.Tensor:
    """The id of the highest logit of each row [B, V] -> [B] int64; the lowest id among equals.

    ``torch.argmax`` promises the first maximum. On a CPU it reads one value at a time, where the maxima
    of blocks are found with vector instructions.
    """
    if logits.shape[1] % _BLOCK:
        return logits.argmax(1)
    blocks = logits.view(logits.shape[0], -1, _BLOCK)
    block = blocks.amax(2).argmax(1)
    inside = blocks.gather(1, block.view(-1, 1, 1).expand(-1, 1, _BLOCK)).squeeze(1)
    return block * _BLOCK + inside.argmax(1)


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _shift(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical right shift of int64 (torch's own is arithmetic)."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def uniforms(keys: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Uniform numbers in [0, 1 - 2**-53], fp64, multiples of 2**-53.

    Args:
        keys: [B] int64 from ``seeds.stream_key``.
        positions: [B] int64, index of the token to be sampled.
    """
    # int64 arithmetic wraps around, which is the arithmetic modulo 2**64 that the hash is defined in
    bits = keys + (positions + 1) * _signed(GOLDEN)
    bits = (bits ^ _shift(bits, SHIFTS[0])) * _signed(MULTIPLIERS[0])
    bits = (bits ^ _shift(bits, SHIFTS[1])) * _signed(MULTIPLIERS[1])
    bits = bits ^ _shift(bits, SHIFTS[2])
    return _shift(bits, 11).double() * 2.0**-53


def exact_masses(weights: torch.Tensor) -> torch.Tensor:
    """``weights`` (in [0, 1], summing to about 1) as fp64 multiples of 2**-52.

    Sums of such numbers are exact below 2, hence the same in whatever order a device adds them.
    """
    return weights.double().add_(1.0).sub_(1.0)


def draw(weights: torch.Tensor, uniform: torch.Tensor, scratch: Scratch) -> torch.Tensor:
    """Draw ids [R] int64 with probabilities proportional to ``weights`` [R, V] fp32, no sorting needed.

    ``uniform`` [R] fp64 in [0, 1 - 2**-53]. A token of weight 0 is never drawn.
    """
    return invert(weights, running_sums(weights, scratch), uniform)


def running_sums(weights: torch.Tensor, scratch: Scratch) -> torch.Tensor:
    """Cumulative sums along each row [R, V], never decreasing, the same for a row in any batch."""
    if weights.device.type == "cpu":
        num_rows, width = weights.shape
        # one thread adds up one row from left to right, in fp64 inside
        return torch.cumsum(weights, 1, out=scratch.get("running sums", (num_rows, width)))
    return exact_running_sums(weights)  # a parallel scan adds in any order


def exact_running_sums(weights: torch.Tensor) -> torch.Tensor:
    """Cumulative sums of ``exact_masses``, [R, V] fp64: the same on every device."""
    return exact_masses(weights).cumsum(1)


def invert(weights: torch.Tensor, running: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Ids [R] at which the ``running`` sums of ``weights`` [R, V] pass the fraction ``uniform`` [R].

    Two steps: first a block of 128 tokens, then a token within the block by sums of its own, so that
    fp32 running sums over a whole vocabulary cost no precision among improbable tokens.
    """
    vocab = weights.shape[1]
    last_of_block = torch.arange(
        _BLOCK - 1, vocab + _BLOCK - 1, _BLOCK, dtype=torch.int64, device=weights.device
    )
    ends = running.index_select(1, last_of_block.clamp_(max=vocab - 1)).double()
    # uniform <= 1 - 2**-53, so target is below the last end even after rounding: the block found has weight.
    # Only a row of NaN needs the clamp.
    target = uniform.unsqueeze(1) * ends[:, -1:]
    block = torch.searchsorted(ends, target, right=True).clamp_(max=ends.shape[1] - 1)
    end = ends.gather(1, block)
    begin = torch.where(block > 0, ends.gather(1, (block - 1).clamp_(min=0)), 0.0)

    columns = block * _BLOCK + torch.arange(_BLOCK, dtype=torch.int64, device=weights.device)
    inside = weights.gather(1, columns.clamp(max=vocab - 1)).double()
    inside.masked_fill_(columns >= vocab, 0.0)
    sums = inside.cumsum(1)
    offset = (sums <= (target - begin) / (end - begin) * sums[:, -1:]).sum(1, keepdim=True)
    offset.clamp_(max=_BLOCK - 1)
    # the two differences may round to the same number, which points past the last token that has weight
    offset = torch.where(inside.gather(1, offset) == 0, inside.argmax(1, keepdim=True), offset)
    return (block * _BLOCK + offset).squeeze(1)


def draw_rows_reference(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    kinds: torch.Tensor,
    keys: torch.Tensor,
    positions: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The GPU kernel ``draw_rows`` in torch: (token_ids, highest, total, uniform), all [B].

    Arguments and results as there (``kernels/gpu/sampling.py``). Probabilities are integers of the same
    scale, so only the rounding of ``exp`` can tell the two apart.
    """
    scale = 2.0**42
    x = logits.float()
    x = torch.where(x.isnan(), -torch.inf, x)
    highest, arg = x.amax(1, keepdim=True), most_probable(x)
    finite = highest.isfinite()
    gap = torch.where(finite, x, -torch.inf) - torch.where(finite, highest, 0.0)
    masses = (torch.exp(gap * (1 / temperature.view(-1, 1))) * scale).long()
    running = masses.cumsum(1)
    total = running[:, -1:]
    uniform = uniforms(keys, positions)
    target = torch.minimum((uniform.unsqueeze(1) * total.double()).long(), total - 1)
    drawn = torch.searchsorted(running, target, right=True).squeeze(1)
    token_ids = torch.where((kinds == PLAIN) & (total.squeeze(1) > 0), drawn, arg)
    return token_ids, highest.squeeze(1), total.squeeze(1), uniform
