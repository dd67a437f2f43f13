"""From a step's layout to what the GPU's kernels read: a few copies that nobody waits for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ...kernels.gpu.page_copy import copy_pages
from ...kernels.gpu.step_inputs import prepare_step, store_tokens
from ...kernels.upload import upload
from ...models.forward import ForwardInput, GroupStep, WantedTokens
from .layout import OWN_COLUMNS, StepLayout
from .planners import plan_wanted
from .step_input import SampledPlaces, StepInput

if TYPE_CHECKING:
    from ...cache.kv_cache import KVCache
    from ...cache.kv_kind import KVPlanner
    from ...cache.slot_tables import SlotTables


class GpuInputs:
    """Builds a step's tensors; ids and pages are gathered on the device.

    ``planners``: one per KV group, in their order.
    """

    def __init__(self, tables: SlotTables, page_size: int, planners: Sequence[KVPlanner]) -> None:
        self.tables = tables
        self.planners = planners
        self.device = tables.device
        self._page_size = page_size

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
            wanted = plan_wanted(self.planners, last, sample_slots, sample_positions)
        plans = [planner.plan(layout) for planner in self.planners]
        columns = dict(zip(layout.columns, sent))
        forward = self.forward_input(columns, self.gather(columns), plans, wanted)
        return StepInput(forward, SampledPlaces(last, sample_slots, sample_positions.long()))

    def gather(self, columns: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids [T] int64 of tokens with these columns, and where what is kept of them goes [T] int64."""
        tables = self.tables
        return prepare_step(
            tables.tokens, tables.pages, columns["slot"], columns["position"], self._page_size
        )

    def forward_input(
        self,
        columns: Mapping[str, torch.Tensor],
        gathered: tuple[torch.Tensor, torch.Tensor],
        plans: Iterable[Any],
        wanted: WantedTokens | None = None,
    ) -> ForwardInput:
        """What the model reads of T tokens with these ``columns`` [T] int32, in eager and recorded steps.

        ``gathered``: the result of :meth:`gather`; ``plans``: one per KV group.
        """
        input_ids, kv_slots = gathered
        groups = [GroupStep(kv_slots, plan) for plan in plans]
        more = {name: column for name, column in columns.items() if name not in OWN_COLUMNS}
        return ForwardInput(input_ids, columns["position"], groups, wanted=wanted, columns=more)

    def store(self, places: SampledPlaces, token_ids: torch.Tensor) -> None:
        """Put sampled ids [S] into the token table, where the next launch finds them."""
        store_tokens(self.tables.tokens, places.slots, places.positions, token_ids)

    def copy_pages(self, kv: KVCache, copies: Sequence[tuple[int, int]]) -> None:
        """Copy pages (source, destination) in every plane, all as if at once."""
        sources, destinations = upload(self.device, *np.array(copies, dtype=np.int32).T)
        for data in kv.data:
            copy_pages(data, sources, destinations)
