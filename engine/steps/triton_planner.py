"""Attention over pages of keys and values on a GPU, planned for the Triton kernels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ...cache.kv_kind import NO_DATA, KVPlanner, Place, RecordedData, StepRows, StepShape
from ...cache.kv_spec import KVGroup
from ...kernels.gpu.attention import DecodeRows, PrefillRows, SharedPrefixes, TritonAttentionPlan
from ...kernels.gpu.decode_attention import num_decode_splits
from ...kernels.gpu.long_prefill import can_use, long_rows, tiles_outside
from ...kernels.gpu.prefill_attention import invariant_config, prefill_config, prefill_tiles, tile_tokens
from ...kernels.upload import upload
from .shared_prefixes import PrefixGroups, padded


class TritonPlanner(KVPlanner):
    """Plans decodes, the prefixes they share, and other rows, each for its kernel.

    ``share_prefixes``: decode rows that begin with the same pages read them together. ``deterministic``: one
    kernel computes every row, in an order that depends on nothing but the row; prefixes are not shared.
    """

    def __init__(
        self,
        pages: torch.Tensor,
        group: KVGroup,
        page_size: int,
        *,
        share_prefixes: bool,
        deterministic: bool = False,
    ) -> None:
        _, (num_kv_heads, head_dim), dtype = group.plane("k")
        self._pages = pages
        self._device = pages.device
        self._num_kv_heads = num_kv_heads
        self._prefixes = None
        if share_prefixes and not deterministic:
            self._prefixes = PrefixGroups(group.num_q_heads, num_kv_heads, page_size)
        self._exact = invariant_config(head_dim, dtype) if deterministic else None
        config = self._exact or prefill_config(head_dim, page_size, dtype)
        self._tile_tokens = tile_tokens(config.block_m, group.num_q_heads, num_kv_heads)
        self._has_long_rows = not deterministic and can_use(self._device, dtype, head_dim)

    def plan(self, rows: StepRows) -> TritonAttentionPlan:
        """Decodes, the prefixes they share, and the other rows."""
        decodes = None if self._exact else self._planned_decodes(rows)
        first = rows.num_decodes if self._exact is None else 0
        return TritonAttentionPlan(self._pages, decodes, self._prefill_rows(rows, first))

    def plan_decodes(self, slots: torch.Tensor, kv_lens: torch.Tensor) -> TritonAttentionPlan:
        """Rows of one token each, every one for itself."""
        return self._plan_decodes(slots, kv_lens, None)

    def recorded_data(self, rows: StepRows, size: int) -> RecordedData:
        """Which rows share prefixes, where that pays."""
        if self._prefixes is None:
            return NO_DATA
        groups = self._prefixes.of(rows.token_tables, rows.positions)
        if groups is None:
            return NO_DATA
        num_tiles = self._prefixes.capacity(groups)
        arrays = padded(groups, size, num_tiles)
        return RecordedData(num_tiles, arrays, tuple(map(Place, (a.shape for a in arrays), (-1, 0, 0))))

    def plan_recorded(
        self, slots: torch.Tensor, kv_lens: torch.Tensor, data: Sequence[torch.Tensor]
    ) -> TritonAttentionPlan:
        """Rows of one token each, with the prefixes that :meth:`recorded_data` describes."""
        shared = None
        if self._prefixes is not None and data:
            shared = self._prefixes.recorded(*data)
        return self._plan_decodes(slots, kv_lens, shared)

    def recorded_rows(self, rows: StepRows, shape: StepShape) -> RecordedData | None:
        """Decodes and other rows; none with prefixes that are worth sharing, or with parts for cuDNN."""
        num_decodes, num_others = self._rows_of(shape)
        n = rows.num_decodes if num_decodes else 0
        slots, kv_lens, counts, q_starts = rows.slots, rows.kv_lens, rows.counts[n:], rows.q_starts[n:]
        if n and self._prefixes is not None and self._prefixes.of(rows.page_tables[:n], rows.starts[:n]):
            return None
        if self._has_long_rows and long_rows(slots[n:], q_starts, counts, kv_lens[n:]):
            return None
        # one row more than there are, which has no tokens and no context: its tiles do nothing
        starts = np.full(num_others + 2, q_starts[-1], dtype=np.int32)
        starts[: len(q_starts)] = q_starts
        tiles = prefill_tiles(counts, self._tile_tokens, kv_lens[n:])
        arrays = (slots[:n], kv_lens[:n], slots[n:], kv_lens[n:], starts, tiles)
        num_tiles = shape.num_tokens // self._tile_tokens + num_others
        shapes = (num_decodes, num_decodes, num_others + 1, num_others + 1, num_others + 2)
        places = [Place((length,)) for length in shapes]
        return RecordedData(0, arrays, (*places, Place((2, num_tiles), num_others)))

    def plan_recorded_rows(self, data: Sequence[torch.Tensor]) -> TritonAttentionPlan:
        """Decodes first: their kernel clears the places that it has no rows for, which others then fill."""
        decode_slots, decode_lens, slots, kv_lens, q_starts, tiles = data
        decodes = self._decode_rows(decode_slots, decode_lens, None) if len(decode_slots) else None
        others = PrefillRows(slots, kv_lens, q_starts, tiles, config=self._exact)
        return TritonAttentionPlan(self._pages, decodes, others)

    def _rows_of(self, shape: StepShape) -> tuple[int, int]:
        """How many rows of a recorded step each of the two kernels has room for."""
        if self._exact is not None:
            return 0, shape.num_decodes + shape.num_others
        return shape.num_decodes, shape.num_others

    def _plan_decodes(
        self, slots: torch.Tensor, kv_lens: torch.Tensor, shared: SharedPrefixes | None
    ) -> TritonAttentionPlan:
        if self._exact is None:
            return TritonAttentionPlan(self._pages, self._decode_rows(slots, kv_lens, shared), None)
        n = len(slots)
        ordinals = torch.arange(n + 1, dtype=torch.int32, device=self._device)
        tiles = torch.stack((ordinals[:n], torch.zeros_like(ordinals[:n])))
        rows = PrefillRows(slots, kv_lens, ordinals, tiles, config=self._exact)
        return TritonAttentionPlan(self._pages, None, rows)

    def _decode_rows(
        self, slots: torch.Tensor, kv_lens: torch.Tensor, shared: SharedPrefixes | None
    ) -> DecodeRows:
        return DecodeRows(slots, kv_lens, num_decode_splits(len(slots), self._num_kv_heads), shared)

    def _planned_decodes(self, rows: StepRows) -> DecodeRows | None:
        n = rows.num_decodes
        if not n:
            return None
        slots, kv_lens = upload(self._device, rows.slots[:n], rows.kv_lens[:n])
        shared = None
        if self._prefixes is not None:
            groups = self._prefixes.of(rows.page_tables[:n], rows.starts[:n])
            if groups is not None:
                arrays = (groups.tile_rows, groups.tile_lens, groups.kv_starts)
                tiles, lens, starts = upload(self._device, *arrays)
                shared = SharedPrefixes(tiles, lens, starts, self._prefixes.num_splits(groups))
        return self._decode_rows(slots, kv_lens, shared)

    def _prefill_rows(self, rows: StepRows, first: int) -> PrefillRows | None:
        """The rows from ``first`` on."""
        if first == rows.num_rows:
            return None
        slots, counts, kv_lens, q_starts = (
            rows.slots[first:],
            rows.counts[first:],
            rows.kv_lens[first:],
            rows.q_starts[first:],
        )
        tiles = prefill_tiles(counts, self._tile_tokens, kv_lens)
        parts = long_rows(slots, q_starts, counts, kv_lens) if self._has_long_rows else ()
        if not parts:
            own, lens, begins, all_tiles = upload(self._device, slots, kv_lens, q_starts, tiles)
            return PrefillRows(own, lens, begins, all_tiles, config=self._exact)
        short = tiles_outside(tiles, self._tile_tokens, q_starts, parts)
        own, lens, begins, all_tiles, short_tiles = upload(
            self._device, slots, kv_lens, q_starts, tiles, short
        )
        return PrefillRows(own, lens, begins, all_tiles, parts, short_tiles)
