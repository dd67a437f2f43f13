"""Token sequences one after the other without padding, and where attention finds their keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch

from ..errors import InvalidRequestError
from ..kernels.attention import AttentionPlan, PagedAttentionPlan
from ..kernels.device import on_gpu

PAGE_SIZE = 64
"""Tokens in a page; which pages hold a context changes no bit of a deterministic engine."""


@dataclass(frozen=True)
class Sequences:
    """B sequences of ``lengths`` tokens, T in all, each with pages of its own. All tensors on one device."""

    lengths: tuple[int, ...]
    ids: torch.Tensor  # [T] int64
    positions: torch.Tensor  # [T] int64, within the sequence
    kv_slots: torch.Tensor  # [T] int64, page * PAGE_SIZE + offset
    page_table: torch.Tensor  # [B, P] int32
    q_starts: torch.Tensor  # [B + 1] int32
    kv_lens: torch.Tensor  # [B] int32
    num_pages: int

    @classmethod
    def of(cls, ids: torch.Tensor, lengths: Sequence[int]) -> Sequences:
        """Sequences of ``lengths``, all above 0, whose tokens are ids ``[T]`` int64."""
        device = ids.device
        counts = [-(-length // PAGE_SIZE) for length in lengths]
        first_pages = np.cumsum([0, *counts])[:-1]
        positions = np.concatenate([np.arange(n, dtype=np.int64) for n in lengths])
        starts = np.repeat(first_pages * PAGE_SIZE, lengths)
        table = first_pages[:, None] + np.arange(max(counts))  # pages past a sequence's own are never read
        table = np.minimum(table, sum(counts) - 1).astype(np.int32)

        def upload(array: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(array).to(device)

        return cls(
            lengths=tuple(lengths),
            ids=ids,
            positions=upload(positions),
            kv_slots=upload(positions + starts),
            page_table=upload(table),
            q_starts=upload(np.array([0, *accumulate(lengths)], dtype=np.int32)),
            kv_lens=upload(np.array(lengths, dtype=np.int32)),
            num_pages=sum(counts),
        )

    def plan(self, num_q_heads: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> AttentionPlan:
        """The attention of a deterministic engine, for every token of every sequence at once."""
        if not on_gpu(self.ids):
            longest = max(self.lengths)
            return PagedAttentionPlan(
                self.page_table, self.q_starts, self.kv_lens, PAGE_SIZE, max_q=longest, max_kv=longest
            )
        from ..kernels.gpu.attention import PrefillRows, TritonAttentionPlan
        from ..kernels.gpu.prefill_attention import invariant_config, prefill_tiles, tile_tokens

        config = invariant_config(head_dim, dtype)
        tokens = tile_tokens(config.block_m, num_q_heads, num_kv_heads)
        tiles = torch.from_numpy(prefill_tiles(np.array(self.lengths), tokens)).to(self.ids.device)
        slots = torch.arange(len(self.lengths), dtype=torch.int32, device=self.ids.device)
        rows = PrefillRows(slots, self.kv_lens, self.q_starts, tiles, config=config)
        return TritonAttentionPlan(self.page_table, None, rows)


def unpadded(
    ids: torch.Tensor, mask: torch.Tensor | None, position_ids: torch.Tensor | None = None
) -> tuple[Sequences, torch.Tensor]:
    """The sequences of ids ``[B, T]`` without their padding, and their places ``[N]`` in ``ids.flatten()``.

    ``mask`` ``[B, T]`` is true (or 1) at tokens, which stand side by side in a row, padding on either side;
    None: all are tokens. Rows of padding alone have no sequence. ``position_ids``, if given, may only count
    the tokens of a row, from any start. Raises InvalidRequestError for anything else.
    """
    if ids.dim() != 2 or ids.is_floating_point():
        raise InvalidRequestError(f"input_ids must be integers [B, T], got {list(ids.shape)} {ids.dtype}.")
    if mask is None:
        mask = torch.ones(ids.shape, dtype=torch.bool, device=ids.device)
    if mask.shape != ids.shape:
        raise InvalidRequestError(
            f"attention_mask must be [B, T] like input_ids {list(ids.shape)}, got {list(mask.shape)}; masks"
            " of scores are not supported."
        )
    mask = mask.to(ids.device) != 0
    begins = mask & ~torch.nn.functional.pad(mask[:, :-1], (1, 0))
    lengths, parts = torch.stack((mask.sum(1), begins.sum(1))).tolist()
    if max(parts, default=0) > 1:
        row = next(row for row, count in enumerate(parts) if count > 1)
        raise InvalidRequestError(
            f"attention_mask has padding between the tokens of row {row}; padding may stand before or behind"
            " them only."
        )
    if not sum(lengths):
        raise InvalidRequestError("There are no tokens: the attention_mask is zero everywhere.")
    places = mask.flatten().nonzero().squeeze(1)
    sequences = Sequences.of(ids.flatten()[places].long(), [n for n in lengths if n])
    if position_ids is not None:
        _check_positions(position_ids, ids, places, sequences)
    return sequences, places


def _check_positions(
    position_ids: torch.Tensor, ids: torch.Tensor, places: torch.Tensor, sequences: Sequences
) -> None:
    given = position_ids.to(ids.device).expand(ids.shape).flatten()[places] - sequences.positions
    firsts = torch.repeat_interleave(given[sequences.q_starts[:-1].long()], sequences.kv_lens.long())
    if not torch.equal(given, firsts):
        raise InvalidRequestError(
            "position_ids must count the tokens of each row one by one; rows packed of several sequences are"
            " not supported. Leave position_ids out, and give each sequence a row of its own."
        )
