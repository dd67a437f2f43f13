"""From a step's layout to what flashinfer plans: lengths from the host, page ids gathered on the device.

Nothing here waits for the step before: a decode's token may still be unknown on the host, its position
never is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ...kernels.gpu.flashinfer import FlashInferPlan, PagedRows, Planner
from .gpu_inputs import GpuInputs
from .layout import StepLayout

if TYPE_CHECKING:
    from ...cache.kv_cache import KVCacheSpec
    from ...cache.slot_tables import SlotTables


class FlashInferInputs(GpuInputs):
    """Builds a step's tensors with attention by flashinfer. ``planner`` plans for one step at a time."""

    def __init__(self, tables: SlotTables, spec: KVCacheSpec, planner: Planner) -> None:
        super().__init__(tables, spec)
        self._planner = planner

    def plan(self, layout: StepLayout) -> FlashInferPlan:
        """Decodes and the other rows, each for its wrapper; the layers say how to score."""
        n, table, page_size = layout.num_decodes, self.tables.pages, self.spec.page_size
        decodes = prefills = None
        if n:
            decodes = PagedRows.of(table, layout.slots[:n], layout.kv_lens[:n], page_size)
        if n < layout.num_rows:
            q_starts = layout.q_starts[n:] - layout.q_starts[n]
            prefills = PagedRows.of(table, layout.slots[n:], layout.kv_lens[n:], page_size, q_starts)
        return FlashInferPlan(self._planner, decodes, prefills)

    def plan_decodes(self, slots: torch.Tensor, kv_lens: torch.Tensor) -> None:
        """Not beside another: a wrapper holds one plan."""
