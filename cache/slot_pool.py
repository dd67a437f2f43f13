"""Ids of the rows of the per-slot device tables (pure Python, so that the scheduler can own them)."""

from __future__ import annotations

import heapq

PADDING_SLOT = 0


class SlotPool:
    """Hands out slot ids ``1 .. num_slots-1``, always the smallest that is free.

    Slot 0 is padding and never handed out. Smallest-first keeps the rows in use close together whatever
    the order in which requests end. Misuse raises AssertionError: it is a bug of the engine.
    """

    def __init__(self, num_slots: int) -> None:
        if num_slots < 2:
            raise AssertionError(
                f"A slot pool needs the padding slot and at least one more, got {num_slots}."
            )
        self._num_slots = num_slots
        self._free = list(range(1, num_slots))  # sorted, hence a valid heap
        self._used: set[int] = set()

    @property
    def num_slots(self) -> int:
        """Slots in all, the padding slot included."""
        return self._num_slots

    @property
    def num_free(self) -> int:
        """Slots that :meth:`allocate` could hand out now."""
        return len(self._free)

    def allocate(self) -> int:
        """Take the smallest free slot. Raises AssertionError if none is left: look at ``num_free`` first."""
        if not self._free:
            raise AssertionError(f"All {self._num_slots - 1} slots are taken.")
        slot = heapq.heappop(self._free)
        self._used.add(slot)
        return slot

    def release(self, slot: int) -> None:
        """Give a slot back. Raises AssertionError if it was not taken."""
        if slot not in self._used:
            raise AssertionError(f"Slot {slot} was released but is not taken.")
        self._used.remove(slot)
        heapq.heappush(self._free, slot)
