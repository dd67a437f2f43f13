"""From a step's layout to what the Triton kernels read: a few copies that nobody waits for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from ...kernels.attention import AttentionPlan
from ...kernels.gpu.attention import DecodeRows, PrefillRows, SharedPrefixes, TritonAttentionPlan
from ...kernels.gpu.decode_attention import num_decode_splits
from ...kernels.gpu.long_prefill import can_use, long_rows, tiles_outside
from ...kernels.gpu.page_copy import copy_pages
from ...kernels.gpu.prefill_attention import invariant_config, prefill_config, prefill_tiles, tile_tokens
from ...kernels.gpu.step_inputs import prepare_step, store_tokens
from ...models.forward import ForwardInput, WantedTokens
from .layout import OWN_COLUMNS, StepLayout
from .shared_prefixes import PrefixGroups
from .step_input import SampledPlaces, StepInput

if TYPE_CHECKING:
    from ...cache.kv_cache import KVCache, KVCacheSpec
    from ...cache.slot_tables import SlotTables

# Triton compiles a kernel once more for pointers that are not multiples of 16 bytes.
_ALIGN = 4  # int32 elements


def upload(device: torch.device, *arrays: np.ndarray) -> list[torch.Tensor]:
    """Send int32 arrays to the device in one copy that the host does not wait for."""
    ends, size = [], 0
    for array in arrays:
        ends.append((size, size + array.size))
        size += -(-array.size // _ALIGN) * _ALIGN
    host = torch.empty(size, dtype=torch.int32, pin_memory=device.type == "cuda", device="cpu")
    view = host.numpy()
    for array, (begin, end) in zip(arrays, ends):
        view[begin:end] = array.reshape(-1)
    sent = host.to(device, non_blocking=True)
    return [sent[begin:end].view(array.shape) for array, (begin, end) in zip(arrays, ends)]


class GpuInputs(ABC):
    """Builds a step's tensors; ids and pages are gathered on the device. A subclass plans attention."""

    def __init__(self, tables: SlotTables, spec: KVCacheSpec) -> None:
        self.tables = tables
        self.spec = spec
        self.device = tables.device

    @abstractmethod
    def plan(self, layout: StepLayout) -> AttentionPlan:
        """What the layers of this step attend to."""

    @abstractmethod
    def plan_decodes(self, slots: torch.Tensor, kv_lens: torch.Tensor) -> AttentionPlan | None:
        """The attention of rows of one token each, slots and lengths [B] int32 on the device.

        None if it cannot be planned beside that of the step.
        """

    def build(self, layout: StepLayout, *, all_states: bool = False) -> StepInput:
        """The inputs of one step; with ``all_states`` the forward pass computes those of every token."""
        *sent, last_tokens, sample_slots, sample_positions = upload(
            self.device,
            *layout.columns.values(),
            layout.last_tokens,
            layout.sample_slots,
            layout.sample_positions,
        )
        last = None if layout.all_sample else last_tokens
        wanted = None
        if last is not None and not all_states:
            # a sampled token's position is its row's length
            alone = self.plan_decodes(sample_slots, sample_positions)
            wanted = None if alone is None else WantedTokens(last, alone)
        plan, columns = self.plan(layout), dict(zip(layout.columns, sent))
        forward = self.forward_input(columns, self.gather(columns), plan, wanted)
        return StepInput(forward, SampledPlaces(last, sample_slots, sample_positions.long()))

    def gather(self, columns: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids [T] int64 of tokens with these columns, and where their K and V go [T] int64."""
        tables = self.tables
        return prepare_step(
            tables.tokens, tables.pages, columns["slot"], columns["position"], self.spec.page_size
        )

    def forward_input(
        self,
        columns: Mapping[str, torch.Tensor],
        gathered: tuple[torch.Tensor, torch.Tensor],
        plan: AttentionPlan,
        wanted: WantedTokens | None = None,
    ) -> ForwardInput:
        """What the model reads of T tokens with these ``columns`` [T] int32, in eager and recorded steps.

        ``gathered``: the result of :meth:`gather`.
        """
        input_ids, kv_slots = gathered
        more = {name: column for name, column in columns.items() if name not in OWN_COLUMNS}
        return ForwardInput(input_ids, columns["position"], kv_slots, plan, wanted=wanted, columns=more)

    def store(self, places: SampledPlaces, token_ids: torch.Tensor) -> None:
        """Put sampled ids [S] into the token table, where the next launch finds them."""
        store_tokens(self.tables.tokens, places.slots, places.positions, token_ids)

    def copy_pages(self, kv: KVCache, copies: Sequence[tuple[int, int]]) -> None:
        """Copy pages (source, destination) in every layer, all as if at once."""
        [pairs] = upload(self.device, np.array(copies, dtype=np.int32).T)
        copy_pages(kv.data, pairs[0].contiguous(), pairs[1].contiguous())


class TritonInputs(GpuInputs):
    """Builds a step's tensors for the Triton kernels.

    ``share_prefixes``: decode rows that begin with the same pages read them together. ``deterministic``: one
    kernel computes every row, in an order that depends on nothing but the row; prefixes are not shared.
    """

    def __init__(
        self,
        tables: SlotTables,
        spec: KVCacheSpec,
        num_q_heads: int,
        *,
        share_prefixes: bool,
        deterministic: bool = False,
    ) -> None:
        super().__init__(tables, spec)
        self.groups = None
        if share_prefixes and not deterministic:
            self.groups = PrefixGroups(num_q_heads, spec.num_kv_heads, spec.page_size)
        self._exact = invariant_config(spec.head_dim, spec.dtype) if deterministic else None
        config = self._exact or prefill_config(spec.head_dim, spec.page_size, spec.dtype)
        self._tile_tokens = tile_tokens(config.block_m, num_q_heads, spec.num_kv_heads)
        self._has_long_rows = not deterministic and can_use(self.device, spec.dtype, spec.head_dim)

    def plan_decodes(
        self, slots: torch.Tensor, kv_lens: torch.Tensor, shared: SharedPrefixes | None = None
    ) -> TritonAttentionPlan:
        """The attention of rows of one token each: slots and lengths [B] int32."""
        n = len(slots)
        if self._exact is None:
            return TritonAttentionPlan(self.tables.pages, self._decode_rows(slots, kv_lens, shared), None)
        ordinals = torch.arange(n + 1, dtype=torch.int32, device=self.device)
        tiles = torch.stack((ordinals[:n], torch.zeros_like(ordinals[:n])))
        rows = PrefillRows(slots, kv_lens, ordinals, tiles, config=self._exact)
        return TritonAttentionPlan(self.tables.pages, None, rows)

    def plan(self, layout: StepLayout) -> TritonAttentionPlan:
        """Decodes, the prefixes they share, and the other rows."""
        decodes = None if self._exact else self._planned_decodes(layout)
        first = layout.num_decodes if self._exact is None else 0
        return TritonAttentionPlan(self.tables.pages, decodes, self._prefill_rows(layout, first))

    def _decode_rows(
        self, slots: torch.Tensor, kv_lens: torch.Tensor, shared: SharedPrefixes | None
    ) -> DecodeRows:
        return DecodeRows(slots, kv_lens, num_decode_splits(len(slots), self.spec.num_kv_heads), shared)

    def _planned_decodes(self, layout: StepLayout) -> DecodeRows | None:
        n = layout.num_decodes
        if not n:
            return None
        slots, kv_lens = upload(self.device, layout.slots[:n], layout.kv_lens[:n])
        groups = None
        if self.groups is not None:
            groups = self.groups.of(layout.page_tables[:n], layout.starts[:n])
        shared = None
        if groups is not None:
            sent = upload(self.device, groups.tile_rows, groups.tile_lens, groups.kv_starts)
            shared = SharedPrefixes(*sent, self.groups.num_splits(groups))
        return self._decode_rows(slots, kv_lens, shared)

    def _prefill_rows(self, layout: StepLayout, first: int) -> PrefillRows | None:
        """The rows from ``first`` on."""
        if first == layout.num_rows:
            return None
        slots, counts, kv_lens, q_starts = (
            layout.slots[first:],
            layout.counts[first:],
            layout.kv_lens[first:],
            layout.q_starts[first:],
        )
        tiles = prefill_tiles(counts, self._tile_tokens, kv_lens)
        parts = long_rows(slots, q_starts, counts, kv_lens) if self._has_long_rows else ()
        if not parts:
            sent = upload(self.device, slots, kv_lens, q_starts, tiles)
            return PrefillRows(*sent, config=self._exact)
        short = tiles_outside(tiles, self._tile_tokens, q_starts, parts)
        *sent, short_tiles = upload(self.device, slots, kv_lens, q_starts, tiles, short)
        return PrefillRows(*sent, parts, short_tiles)
