"""From a step's layout to the tensors of one forward pass, on the CPU or with torch alone.

The GPU's counterpart, which the Triton kernels read, is ``gpu_inputs.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from ...kernels.attention import PagedAttentionPlan
from ...models.forward import ForwardInput, WantedTokens
from .layout import StepLayout
from .step_input import SampledPlaces, StepInput

if TYPE_CHECKING:
    from ...cache.kv_cache import KVCache
    from ...cache.slot_tables import SlotTables


class TorchInputs:
    """Builds inputs with torch operations; token ids and pages come from the slot tables."""

    def __init__(self, tables: SlotTables, page_size: int) -> None:
        self._tables = tables
        self._page_size = page_size

    def build(self, layout: StepLayout, *, all_states: bool = False) -> StepInput:
        """The inputs of one step; with ``all_states`` the forward pass computes those of every token."""
        tables, page_size, device = self._tables, self._page_size, self._tables.tokens.device

        def on_device(values: np.ndarray, dtype: torch.dtype = torch.int64) -> torch.Tensor:
            return torch.from_numpy(values).to(device, dtype)

        token_slots, positions = on_device(layout.token_slots), on_device(layout.positions)
        max_kv = int(layout.kv_lens.max())
        page_table = tables.pages[on_device(layout.slots), : -(-max_kv // page_size)]
        pages = tables.pages[token_slots, positions // page_size].long()
        plan = PagedAttentionPlan(
            page_table=page_table.contiguous(),
            q_starts=on_device(layout.q_starts, torch.int32),
            kv_lens=on_device(layout.kv_lens, torch.int32),
            page_size=page_size,
            max_q=int(layout.counts.max()),
            max_kv=max_kv,
        )
        last = None if layout.all_sample else on_device(layout.last_tokens)
        wanted = None
        if last is not None and not all_states:
            rows = on_device(layout.sample_rows)
            single = torch.arange(len(last) + 1, dtype=torch.int32, device=device)
            wanted = WantedTokens(
                last,
                replace(
                    plan,
                    page_table=plan.page_table[rows],
                    q_starts=single,
                    kv_lens=on_device(layout.sample_positions, torch.int32),  # what stands before a token
                    max_q=1,
                ),
            )
        forward = ForwardInput(
            input_ids=tables.tokens[token_slots, positions].long(),
            positions=positions,
            kv_slots=pages * page_size + positions % page_size,
            attention=plan,
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
        """Copy pages (source, destination) in every layer, all as if at once."""
        sources, destinations = zip(*copies)
        kv.copy_pages(sources, destinations)
