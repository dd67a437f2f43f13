"""Edits of the logits before a token is chosen: biases, banned tokens, penalties, grammar masks.

All work in place on fp32 logits [B, V] and only touch the rows that ask.
"""

from __future__ import annotations

import torch

from ..kernels.token_mask import mask_disallowed
from .scratch import Scratch
from .stages import Bans, Biases, Penalties

__all__ = ["add_biases", "apply_penalties", "ban_until_min", "mask_disallowed"]


def add_biases(logits: torch.Tensor, biases: Biases) -> None:
    """Add each row's ``logit_bias`` in place."""
    logits.view(-1).index_add_(0, biases.flat, biases.values)


def ban_until_min(logits: torch.Tensor, bans: Bans, positions: torch.Tensor) -> None:
    """Set the stop tokens of rows that have not reached ``min_new_tokens`` to -inf, in place.

    ``positions`` [B] int64: the index of the token about to be sampled.
    """
    flat = logits.view(-1)
    banned = positions[bans.row] < bans.until
    # index_put_ and not put_, which a host that asks torch for deterministic algorithms makes raise
    flat.index_put_((bans.flat,), flat.take(bans.flat).masked_fill(banned, float("-inf")))


def apply_penalties(
    logits: torch.Tensor,
    penalties: Penalties,
    positions: torch.Tensor,
    tokens: torch.Tensor,
    scratch: Scratch,
) -> None:
    """Apply presence, frequency, then repetition penalties in place.

    With c = occurrences of the token in the output so far:
    ``logit -= frequency * c + presence * (c > 0)``; then, for tokens of prompt or output,
    ``logit / repetition`` if positive, else ``logit * repetition`` (Keskar et al. 2019, CTRL, section 4.1,
    with the sign rule that keeps the penalty a penalty).

    Args:
        logits: [B, V] fp32.
        penalties: who asks and for what.
        positions: [B] int64, number of tokens each row has.
        tokens: [num_slots, max_tokens] integer table; row ``slot`` holds the tokens in its first
            ``position`` columns. The newest token may exist only here, so host lists are not used.
        scratch: work buffers.
    """
    vocab = logits.shape[1]
    lengths = penalties.rows.take(positions).unsqueeze(1)
    # Reading the longest length is free where positions are in host memory; elsewhere it would make the
    # host wait for the device, so there the whole width of the table is read.
    width = max(1, int(lengths.max())) if lengths.device.type == "cpu" else tokens.shape[1]
    history = tokens[:, :width].index_select(0, penalties.slots).long()
    columns = torch.arange(width, dtype=torch.int64, device=history.device)
    # Columns past the end stand for the row's first token again: every column then names a token that
    # was seen, and writing one token several times is harmless because it gets the same value each time.
    history = torch.where(columns < lengths, history, history[:, :1])
    row = torch.arange(logits.shape[0], dtype=torch.int64, device=logits.device).unsqueeze(1)
    flat = penalties.rows.take(row) * vocab + history
    values = logits.view(-1).take(flat)
    if penalties.any_linear:
        is_output = (columns >= penalties.prompt_lens.unsqueeze(1)) & (columns < lengths)
        counts = scratch.get("counts", (history.shape[0], vocab)).zero_()
        counts = counts.scatter_add_(1, history, is_output.float()).gather(1, history)
        values -= penalties.frequency * counts
        values -= penalties.presence * (counts > 0)
    if penalties.any_repetition:
        values = torch.where(values > 0, values / penalties.repetition, values * penalties.repetition)
    logits.view(-1).index_put_((flat,), values)
