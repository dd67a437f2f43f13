"""The batch of a step while the scheduler puts it together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .batch import Batch, BatchRow, Decodes, PageWrite, TokenWrite

if TYPE_CHECKING:
    from .request import Request


class BatchBuilder:
    """Rows and table updates so far.

    Args:
        prefill_budget: prompt tokens that the step may take.
        even: decodes count as well, up to half of it.
    """

    def __init__(self, prefill_budget: int, *, even: bool) -> None:
        self._budget = prefill_budget
        self._even = even
        self.num_prefill_tokens = 0
        self.decodes: list[Request] = []  # nothing but their newest token; counters are moved already
        self.singles: list[BatchRow] = []  # one token of a prompt or of a recomputation
        self.prefills: list[BatchRow] = []  # several
        self.page_copies: list[tuple[int, int]] = []
        self.page_writes: list[PageWrite] = []
        self.token_writes: list[TokenWrite] = []

    @property
    def prefill_budget(self) -> int:
        """Prompt tokens that the step may still take; in even steps the decodes found so far count too."""
        decodes = min(len(self.decodes), self._budget // 2) if self._even else 0
        return self._budget - decodes - self.num_prefill_tokens

    def build(self, *, collects_states: bool, speculates: bool, is_bound: bool) -> Batch:
        """The batch."""
        return Batch(
            other_rows=(*self.singles, *self.prefills),
            num_decodes=len(self.decodes) + len(self.singles),
            page_copies=tuple(self.page_copies),
            page_writes=tuple(self.page_writes),
            token_writes=tuple(self.token_writes),
            decodes=Decodes.of(self.decodes),
            collects_states=collects_states,
            speculates=speculates,
            is_bound=is_bound,
        )
