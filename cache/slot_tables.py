"""Per-slot tables on the device: which tokens a running sequence consists of and which pages hold them.

A slot is a row. The host sends only what changed; the tables never come back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch

from .memory import Allocate, zeros
from .slot_pool import PADDING_SLOT, SlotPool

__all__ = ["PADDING_SLOT", "Run", "SlotPool", "SlotTables", "WriteRuns", "write_in_place"]

Run = tuple[int, int, Sequence[int]]
"""``(slot, start, values)``: for columns ``start, start+1, …`` of row ``slot``; ``array('i')`` is fastest."""

WriteRuns = Callable[[torch.Tensor, torch.Tensor, Sequence[Run], Sequence[Run]], None]
"""Writes runs to a table of tokens and others to one of pages: ``(tokens, pages, token_runs, page_runs)``."""


def write_in_place(
    tokens: torch.Tensor, pages: torch.Tensor, token_runs: Sequence[Run], page_runs: Sequence[Run]
) -> None:
    """The :data:`WriteRuns` of tables in the host's memory."""
    for table, runs in ((tokens, token_runs), (pages, page_runs)):
        if runs:
            rows = table.numpy()
            for slot, start, values in runs:
                rows[slot, start : start + len(values)] = values


class SlotTables:
    """``tokens[num_slots, max_tokens]`` and ``pages[num_slots, max_pages]``, both int32, zero at first.

    ``max_pages = ceil(max_tokens / page_size)``. Row 0 is padding. Entries beyond what was written for the
    present owner of a row are left from earlier ones: valid ids, no meaning. Rows are never cleared.
    ``write_runs`` has to know the device; ``allocate`` is where the memory comes from.
    """

    def __init__(
        self,
        num_slots: int,
        max_tokens: int,
        page_size: int,
        device: torch.device | str,
        write_runs: WriteRuns = write_in_place,
        allocate: Allocate = zeros,
    ) -> None:
        self.device = torch.device(device)
        self.max_pages = -(-max_tokens // page_size)
        self.tokens = allocate((num_slots, max_tokens), torch.int32, self.device)
        self.pages = allocate((num_slots, self.max_pages), torch.int32, self.device)
        self._write_runs = write_runs

    @property
    def nbytes(self) -> int:
        """Bytes of both tables."""
        return self.tokens.nbytes + self.pages.nbytes

    def set_tokens(self, slot: int, start: int, ids: Sequence[int]) -> None:
        """Write ``ids`` to row ``slot`` of ``tokens`` from column ``start`` on."""
        self.write(tokens=[(slot, start, ids)])

    def set_pages(self, slot: int, start: int, pages: Sequence[int]) -> None:
        """Write ``pages`` to row ``slot`` of ``pages`` from column ``start`` (counted in pages) on."""
        self.write(pages=[(slot, start, pages)])

    def write(self, tokens: Iterable[Run] = (), pages: Iterable[Run] = ()) -> None:
        """Apply all changes of a step, or none if one is wrong.

        Runs of one call must not overlap (the last need not win on a GPU). Raises AssertionError if a run
        leaves its row: it would land in a neighbour's.
        """
        token_runs, page_runs = [*tokens], [*pages]
        _check(token_runs, self.tokens.shape)
        _check(page_runs, self.pages.shape)
        if token_runs or page_runs:
            self._write_runs(self.tokens, self.pages, token_runs, page_runs)

    def close(self) -> None:
        """Let the memory go. Idempotent."""
        self.tokens = self.pages = torch.empty(0, dtype=torch.int32, device="cpu")


def _check(runs: Sequence[Run], shape: torch.Size) -> None:
    num_rows, num_columns = shape
    for slot, start, values in runs:
        if not (0 <= slot < num_rows and 0 <= start <= start + len(values) <= num_columns):
            raise AssertionError(
                f"Columns {start}:{start + len(values)} of row {slot} are outside a table of {list(shape)}."
            )
