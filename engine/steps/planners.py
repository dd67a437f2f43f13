"""Who plans a step's attention: one planner per KV group, of the backend or of the group's own kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ...cache.kv_kind import KVPlanner, StepRows
from ...cache.kv_spec import KVCacheSpec, KVGroup
from ...kernels.attention import PagedAttentionPlan
from ...models.forward import WantedTokens

MakePlanner = Callable[[torch.Tensor, KVGroup, int], KVPlanner]
"""Of a page table [num_slots, max_pages] int32, a group without a kind of its own, and the page size."""


def make_planners(spec: KVCacheSpec, pages: torch.Tensor, make: MakePlanner) -> tuple[KVPlanner, ...]:
    """The planner of each group, for steps whose page table is ``pages``; ``make`` is the backend's."""
    return tuple(
        make(pages, group, spec.page_size)
        if group.kind is None
        else group.kind.planner(pages, spec.page_size)
        for group in spec.groups
    )


def plan_wanted(
    planners: Sequence[KVPlanner], tokens: torch.Tensor, slots: torch.Tensor, kv_lens: torch.Tensor
) -> WantedTokens | None:
    """Plans for ``tokens`` [S] alone, in the rows ``slots`` with contexts of ``kv_lens``, both [S] int32.

    None, which is all tokens, if a planner has no second plan.
    """
    plans = [planner.plan_decodes(slots, kv_lens) for planner in planners]
    return None if any(plan is None for plan in plans) else WantedTokens(tokens, plans)


class PagedPlanner(KVPlanner):
    """Attention over pages of keys and values by the C kernel, or in torch."""

    def __init__(self, pages: torch.Tensor, page_size: int) -> None:
        self._pages = pages
        self._page_size = page_size

    def plan(self, rows: StepRows) -> PagedAttentionPlan:
        """All rows alike."""
        return PagedAttentionPlan.of(
            self._pages,
            rows.slots,
            rows.q_starts,
            rows.kv_lens,
            page_size=self._page_size,
            max_q=int(rows.counts.max()),
        )

    def plan_decodes(self, slots: torch.Tensor, kv_lens: torch.Tensor) -> PagedAttentionPlan:
        """Waits for the lengths where they are on another device."""
        max_kv = int(kv_lens.max()) if len(kv_lens) else 1
        return PagedAttentionPlan(
            page_table=self._pages[slots.long(), : -(-max_kv // self._page_size)].contiguous(),
            q_starts=torch.arange(len(slots) + 1, dtype=torch.int32, device=slots.device),
            kv_lens=kv_lens,
            page_size=self._page_size,
            max_q=1,
            max_kv=max_kv,
        )
