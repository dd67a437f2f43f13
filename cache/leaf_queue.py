"""The unlocked leaves of the radix tree, least recently used first."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from .radix_node import Node


class LeafQueue:
    """A heap of eviction candidates that is corrected lazily.

    Touching a node or locking it happens on every request and must cost nothing here, so entries are allowed
    to be wrong: a node has at most one entry, with the clock it had when it was pushed. ``pop`` checks each
    entry it meets: a node touched since goes back with its present clock, one that is no candidate now is
    forgotten (it is pushed again when it becomes one). Each correction is paid for by the touch or lock that
    made it necessary, hence O(log n) amortised.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Node]] = []  # (last_access when pushed, serial as tie-break, node)
        self._num_dead = 0

    def __len__(self) -> int:
        return len(self._heap)

    def __iter__(self) -> Iterator[Node]:
        """The nodes with an entry, in no particular order; some may be candidates no more."""
        return (entry[2] for entry in self._heap)

    def push(self, node: Node) -> None:
        """Make a node that became a candidate known; harmless if it is known already."""
        if not node.queued:
            node.queued = True
            heapq.heappush(self._heap, (node.last_access, node.serial, node))

    def pop(self) -> Node | None:
        """Remove and return the least recently used candidate, or None."""
        heap = self._heap
        while heap:
            accessed, serial, node = heap[0]
            if node.is_candidate and node.last_access != accessed:
                heapq.heapreplace(heap, (node.last_access, serial, node))
                continue
            heapq.heappop(heap)
            node.queued = False
            if node.is_candidate:
                return node
            if node.parent is None:
                self._num_dead -= 1
        return None

    def forget(self, node: Node) -> None:
        """Tell that a node left the tree. Entries of such nodes are swept out when they are the majority."""
        if not node.queued:
            return
        self._num_dead += 1
        if self._num_dead > 64 and self._num_dead * 2 > len(self._heap):
            self._heap = [entry for entry in self._heap if entry[2].parent is not None]
            heapq.heapify(self._heap)
            self._num_dead = 0
