"""Per-slot tables on the device: which tokens a running sequence consists of and which pages hold them.

A slot is a row. The host sends only what changed; the tables never come back.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

import torch

from .memory import zeros
from .slot_pool import PADDING_SLOT, SlotPool

__all__ = ["PADDING_SLOT", "Run", "SlotPool", "SlotTables"]

Run = tuple[int, int, Sequence[int]]
"""``(slot, start, values)``: for columns ``start, start+1, …`` of row ``slot``; ``array('i')`` is fastest."""


class SlotTables:
    """``tokens[num_slots, max_tokens]`` and ``pages[num_slots, max_pages]``, both int32, zero at first.

    ``max_pages = ceil(max_tokens / page_size)``. Row 0 is padding. Entries beyond what was written for the
    present owner of a row are left from earlier ones: valid ids, no meaning. Rows are never cleared.
    """

    def __init__(self, num_slots: int, max_tokens: int, page_size: int, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.max_pages = -(-max_tokens // page_size)
        self.tokens = zeros((num_slots, max_tokens), torch.int32, self.device)
        self.pages = zeros((num_slots, self.max_pages), torch.int32, self.device)

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
        """Apply all changes of a step: one host-to-device copy and one scatter per table that changes.

        Runs of one call must not overlap (the last need not win on a GPU). Raises AssertionError if a run
        leaves its row: it would land in a neighbour's.
        """
        token_places, token_values = _flatten(tokens, self.tokens.shape)
        page_places, page_values = _flatten(pages, self.pages.shape)
        places = torch.cat((token_places, page_places))
        num_tokens, num_changes = len(token_values), len(places)
        if num_changes == 0:
            return
        values = torch.frombuffer(token_values + page_values, dtype=torch.int32)
        if self.device.type == "cuda":  # one copy for both: [2n | n] int32, places first for their alignment
            changes = torch.cat((places.view(torch.int32), values)).pin_memory()
            changes = changes.to(self.device, non_blocking=True)
            places, values = changes[: 2 * num_changes].view(torch.int64), changes[2 * num_changes :]
        if num_tokens:
            self.tokens.view(-1)[places[:num_tokens]] = values[:num_tokens]
        if num_tokens < num_changes:
            self.pages.view(-1)[places[num_tokens:]] = values[num_tokens:]

    def close(self) -> None:
        """Let the memory go. Idempotent."""
        self.tokens = self.pages = torch.empty(0, dtype=torch.int32, device="cpu")


def _flatten(runs: Iterable[Run], shape: torch.Size) -> tuple[torch.Tensor, array]:
    """Flat positions (int64) in a table of ``shape``, and the int32 values that go there, of all ``runs``."""
    num_rows, num_columns = shape
    values = array("i")
    shifts, lengths = array("q"), array("q")  # position = shift of its run + index among all values
    for slot, start, run in runs:
        if not (0 <= slot < num_rows and start >= 0 and start + len(run) <= num_columns):
            raise AssertionError(
                f"Columns {start}:{start + len(run)} of row {slot} are outside a table of {list(shape)}."
            )
        shifts.append(slot * num_columns + start - len(values))
        lengths.append(len(run))
        values.extend(run)
    if not values:
        return torch.empty(0, dtype=torch.int64, device="cpu"), values
    shift, length = (torch.frombuffer(part, dtype=torch.int64) for part in (shifts, lengths))
    places = torch.repeat_interleave(shift, length, output_size=len(values))
    return places.add_(torch.arange(len(values), dtype=torch.int64, device="cpu")), values
