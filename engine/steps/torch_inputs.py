"""From a step's layout to the tensors of one forward pass, on the CPU or with torch alone.

The GPU's counterpart, which the Triton kernels read, is ``gpu_inputs.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from ...models.forward import ForwardInput, GroupStep
from .layout import StepLayout
from .planners import plan_wanted
from .step_input import SampledPlaces, StepInput

if TYPE_CHECKING:
    from ...cache.kv_cache import KVCache
    from ...cache.kv_kind import KVPlanner
    from ...cache.slot_tables import SlotTables


class TorchInputs:
    """Builds inputs with torch operations; token ids and pages come from the slot tables.

    ``planners``: one per KV group, in their order.
    """

    def __init__(self, tables: SlotTables, page_size: int, planners: Sequence[KVPlanner]) -> None:
        self._tables = tables
        self._page_size = page_size
        self._planners = planners

    def build(self, layout: StepLayout, *, all_states: bool = False) -> StepInput:
        """The inputs of one step; with ``all_states`` the forward pass computes those of every token."""
        tables, page_size, device = self._tables, self._page_size, self._tables.tokens.device

        def on_device(values: np.ndarray, dtype: torch.dtype = torch.int64) -> torch.Tensor:
            return torch.from_numpy(values).to(device, dtype)

        token_slots, positions = on_device(layout.token_slots), on_device(layout.positions)
        pages = tables.pages[token_slots, positions // page_size].long()
        kv_slots = pages * page_size + positions % page_size
        groups = [GroupStep(kv_slots, planner.plan(layout)) for planner in self._planners]
        last = None if layout.all_sample else on_device(layout.last_tokens)
        wanted = None
        if last is not None and not all_states:
            slots = on_device(layout.sample_slots, torch.int32)
            lens = on_device(layout.sample_positions, torch.int32)  # what stands before a token
            wanted = plan_wanted(self._planners, last, slots, lens)
        forward = ForwardInput(
            input_ids=tables.tokens[token_slots, positions].long(),
            positions=positions,
            groups=groups,
            wanted=wanted,
            columns={name: on_device(v, torch.int32) for name, v in layout.more_columns.items()},
        )
        places = SampledPlaces(last, on_device(layout.sample_slots), on_device(layout.sample_positions))
        return StepInput(forward, places)

    def store(self, places: SampledPlaces, token_ids: torch.Tensor) -> None:
        """Put sampled ids [S] into the token table, where the next launch finds them."""
        tokens = self._tables.tokens
        # The last token of a full context has no next step; its column would lie outside the table.
        inside = places.positions.clamp(max=tokens.shape[1] - 1)
        tokens[places.slots, inside] = token_ids.to(tokens.dtype)

    def copy_pages(self, kv: KVCache, copies: Sequence[tuple[int, int]]) -> None:
        """Copy pages (source, destination) in every plane, all as if at once."""
        sources, destinations = zip(*copies)
        kv.copy_pages(sources, destinations)
