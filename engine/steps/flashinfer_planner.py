"""From a step's rows to what flashinfer plans: lengths from the host, page ids gathered on the device.

Nothing here waits for the step before: a decode's token may still be unknown on the host, its position
never is.
"""

from __future__ import annotations

import torch

from ...cache.kv_kind import KVPlanner, StepRows
from ...kernels.gpu.flashinfer import FlashInferPlan, PagedRows, Planner


class FlashInferPlanner(KVPlanner):
    """Plans attention by flashinfer. ``wrappers`` hold the plan of one step at a time."""

    def __init__(self, pages: torch.Tensor, page_size: int, wrappers: Planner) -> None:
        self._pages = pages
        self._page_size = page_size
        self._wrappers = wrappers

    def plan(self, rows: StepRows) -> FlashInferPlan:
        """Decodes and the other rows, each for its wrapper; the layers say how to score."""
        n, page_size = rows.num_decodes, self._page_size
        decodes = prefills = None
        if n:
            decodes = PagedRows.of(self._pages, rows.slots[:n], rows.kv_lens[:n], page_size)
        if n < rows.num_rows:
            q_starts = rows.q_starts[n:] - rows.q_starts[n]
            prefills = PagedRows.of(self._pages, rows.slots[n:], rows.kv_lens[n:], page_size, q_starts)
        return FlashInferPlan(self._wrappers, decodes, prefills)

    def plan_decodes(self, slots: torch.Tensor, kv_lens: torch.Tensor) -> None:
        """Not beside another: a wrapper holds one plan."""
