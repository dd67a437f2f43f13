"""One step's attention on a GPU: decode rows, shared prefixes and prefill rows, each by its own kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch

from ..device import has_pdl
from ..scoring import Scoring
from . import decode_attention as decode
from . import long_prefill
from . import prefill_attention as prefill
from . import prefix_attention as prefix
from .long_prefill import LongRow
from .merge_states import empty_partials
from .prefill_attention import PrefillConfig

CAN: Final = decode.CAN & prefill.CAN
"""Fields of a :class:`Scoring` that a plan knows: those of the kernels that take any row."""


@dataclass(frozen=True)
class SharedPrefixes:
    """Groups of decode rows whose page tables begin with the same pages, in tiles of R rows.

    ``rows`` [G, R] int32, indices of decode rows, -1 for none; ``lens`` [G] int32, the tile's shared tokens
    (0: unused tile); ``starts`` [B] int32, for each decode row the tokens that its own pass leaves out.
    ``num_splits``: parts that a prefix is divided into.
    """

    rows: torch.Tensor
    lens: torch.Tensor
    starts: torch.Tensor
    num_splits: int


@dataclass(frozen=True)
class DecodeRows:
    """Rows of one token, the first B of the step. ``num_splits``: parts that a context is divided into."""

    slots: torch.Tensor  # [B] int32, row of the slot table
    kv_lens: torch.Tensor  # [B] int32
    num_splits: int
    shared: SharedPrefixes | None = None


@dataclass(frozen=True)
class PrefillRows:
    """Rows of several tokens, which follow the decodes. All tensors int32.

    Where cuDNN can score as the layer does, ``long_rows`` go that way and ``short_tiles`` [2, NS], those of
    ``tiles`` with any other token, serve the rest.
    """

    slots: torch.Tensor  # [P]
    kv_lens: torch.Tensor  # [P]
    q_starts: torch.Tensor  # [P + 1], counted from the step's first token
    tiles: torch.Tensor  # [2, NT], from prefill_tiles
    long_rows: tuple[LongRow, ...] = ()
    short_tiles: torch.Tensor | None = None  # given if there are long rows
    config: PrefillConfig | None = None  # what the tiles were made for, if not prefill_config's choice


@dataclass(frozen=True)
class TritonAttentionPlan:
    """Which q tokens attend to what. ``pages`` [num_slots, max_pages] int32 is the slot table.

    Lengths are read when the kernels run, so a recorded graph serves every length.
    """

    pages: torch.Tensor
    decodes: DecodeRows | None
    prefills: PrefillRows | None

    def attend(
        self, q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, scoring: Scoring
    ) -> torch.Tensor:
        """Attention ``[T, Hq, D]`` of q ``[T, Hq, D]``, as ``paged_attention`` defines it."""
        rows = self.prefills
        long_rows = rows.long_rows if rows is not None and scoring.asks <= long_prefill.CAN else ()
        if len(long_rows) == 1 and long_rows[0].num_tokens == len(q):
            # saves copying it into place
            return self._long(long_rows[0], q, k_cache, v_cache, scoring, None)
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        if self.decodes is not None:
            n = len(self.decodes.slots)
            self._decode(self.decodes, q[:n], k_cache, v_cache, scoring, out[:n])
        if rows is not None:
            tiles = rows.tiles if not long_rows or rows.short_tiles is None else rows.short_tiles
            prefill.prefill_attention(
                q, k_cache, v_cache, self.pages, rows.slots, rows.q_starts, rows.kv_lens, tiles,
                scoring, out=out, config=rows.config,
            )  # fmt: skip
        for row in long_rows:  # after the tiles, some of which reach into them
            part = slice(row.q_start, row.q_start + row.num_tokens)
            self._long(row, q[part], k_cache, v_cache, scoring, out[part])
        return out

    def _long(
        self,
        row: LongRow,
        q: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        scoring: Scoring,
        out: torch.Tensor | None,
    ) -> torch.Tensor:
        ids = self.pages[row.slot, : -(-row.kv_len // k_cache.shape[1])]
        num_prefix = row.kv_len - row.num_tokens
        return long_prefill.attend_long(
            q, k_cache, v_cache, ids, num_prefix, scoring, prefix_parts=row.prefix_parts, out=out
        )

    def _decode(
        self,
        rows: DecodeRows,
        q: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        scoring: Scoring,
        out: torch.Tensor,
    ) -> None:
        caches = (k_cache, v_cache, self.pages, rows.slots)
        shared = rows.shared if scoring.asks <= prefix.CAN else None
        if shared is None:
            decode.decode_attention(
                q, *caches, rows.kv_lens, scoring,
                num_splits=rows.num_splits, out=out, pdl=has_pdl(q.device),
            )  # fmt: skip
            return
        own = rows.num_splits if rows.num_splits > 1 else 0  # a single part needs no room
        partials = empty_partials(len(q), q.shape[1], shared.num_splits + own, q.shape[2], q.device)
        prefix.prefix_attention(
            q, *caches, shared.rows, shared.lens, scoring,
            partials=partials, num_splits=shared.num_splits,
        )  # fmt: skip
        decode.decode_attention(
            q, *caches, rows.kv_lens, scoring, num_splits=rows.num_splits,
            kv_starts=shared.starts, partials=partials, first_split=shared.num_splits,
            out=out, pdl=has_pdl(q.device),
        )  # fmt: skip
