"""Finding rows of a decode batch that share whole pages at their start, on the host; no torch, no Triton."""

from __future__ import annotations

import itertools
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

MERGE_TOKENS = 16
"""What joining a group costs a row, in tokens of K and V: its fp32 partial result is written and read again
(2 Hq/Hkv tokens' worth of bf16 K and V), and its suffix starts on a tile of its own."""

LAUNCH_TOKENS = 2048
"""What the additional kernel launch of a step and layer costs, in tokens of K and V read meanwhile."""


@dataclass(frozen=True)
class SharedGroups:
    """The arguments of ``prefix_attention`` and ``decode_attention`` that describe shared prefixes."""

    tile_rows: np.ndarray  # [G, R] int32: batch rows of each tile, -1 where there is none
    tile_lens: np.ndarray  # [G] int32: shared tokens
    kv_starts: np.ndarray  # [B] int32: where each row's own suffix begins, 0 for rows in no tile


_ID_BYTES = array("i").itemsize

# sorted rows begin : end, and how many pages they share
_Group = tuple[int, int, int]


@dataclass(slots=True)
class _Open:
    """An interval of rows whose end is not found yet; ``saved`` and ``groups`` of what is closed inside."""

    depth: int
    begin: int
    saved: int = 0
    groups: list[_Group] = field(default_factory=list)


def group_rows(
    page_rows: Sequence[Sequence[int]], page_size: int, rows_per_tile: int, min_shared_tokens: int = 128
) -> SharedGroups | None:
    """Return the groups that save most reading, or None if sharing does not pay.

    ``page_rows[b]`` are the pages in use by batch row b; its last one never counts, it is being written. A
    group is a set of at least two rows with a common beginning of at least ``min_shared_tokens``; it is read
    once per ``rows_per_tile`` rows. Where prefixes branch (a system prompt, then a few documents) either the
    common beginning of all or the longer ones of each branch are shared, whichever saves more: a group of n
    rows and t tiles over s tokens saves ``(n - t) s - n MERGE_TOKENS`` tokens. Sharing pays if all groups
    together save more than ``LAUNCH_TOKENS``.
    """
    heads = Counter(pages[0] for pages in page_rows if len(pages) > 1)
    candidates = [row for row, pages in enumerate(page_rows) if len(pages) > 1 and heads[pages[0]] > 1]
    if not candidates:
        return None
    # Sorted by their bytes, whatever the order of those in an id, common beginnings stand side by side.
    keys = {row: array("i", page_rows[row][:-1]).tobytes() for row in candidates}
    candidates.sort(key=keys.__getitem__)
    common = [_common_length(keys[a], keys[b]) for a, b in itertools.pairwise(candidates)]

    def saving(count: int, depth: int) -> int:
        tokens = depth * page_size
        if count < 2 or tokens < min_shared_tokens:
            return 0
        return (count - -(-count // rows_per_tile)) * tokens - count * MERGE_TOKENS

    saved, groups = _best_intervals(common, saving)
    if saved <= LAUNCH_TOKENS:
        return None
    tiles, lengths = [], []
    kv_starts = np.zeros(len(page_rows), dtype=np.int32)
    for begin, end, depth in groups:
        members = sorted(candidates[begin:end])
        kv_starts[members] = depth * page_size
        for first in range(0, len(members), rows_per_tile):
            part = members[first : first + rows_per_tile]
            tiles.append(part + [-1] * (rows_per_tile - len(part)))
            lengths.append(depth * page_size)
    return SharedGroups(np.array(tiles, dtype=np.int32), np.array(lengths, dtype=np.int32), kv_starts)


def _common_length(a: bytes, b: bytes) -> int:
    """How many whole ids both begin with: their first difference is the lowest bit of one long integer."""
    size = min(len(a), len(b))
    different = int.from_bytes(a[:size], "little") ^ int.from_bytes(b[:size], "little")
    if different:
        size = ((different & -different).bit_length() - 1) // 8
    return size // _ID_BYTES


def _best_intervals(common: list[int], saving: Callable[[int, int], int]) -> tuple[int, list[_Group]]:
    """Return the largest saving over disjoint groups of sorted rows, and the groups (begin, end, depth).

    ``common[i]`` is the length that rows i and i + 1 share. The sets of rows with a common beginning form a
    tree of intervals (Abouelhoda, Kurtz & Ohlebusch 2004); each is taken whole or left to its children.
    """
    stack = [_Open(0, 0)]
    for end, depth in enumerate([*common, 0], start=1):
        begin, saved = end - 1, 0
        groups: list[_Group] = []
        while stack[-1].depth > depth:
            closed = stack.pop()
            begin, saved, groups = closed.begin, closed.saved, closed.groups
            whole = saving(end - begin, closed.depth)
            if whole > saved:
                saved, groups = whole, [(begin, end, closed.depth)]
            if stack[-1].depth >= depth:
                stack[-1].saved += saved
                stack[-1].groups += groups
                saved, groups = 0, []
        if stack[-1].depth < depth:
            stack.append(_Open(depth, begin, saved, groups))
    return stack[0].saved, stack[0].groups
