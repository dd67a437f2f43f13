"""Which rows of a step read the same pages first, found again only when the rows change."""

from __future__ import annotations

from collections.abc import Sequence
from operator import is_

import numpy as np
import torch

from ...kernels.gpu.attention import SharedPrefixes
from ...kernels.gpu.prefix_attention import num_prefix_splits, rows_per_tile
from ...kernels.gpu.prefix_groups import SharedGroups, group_rows


class PrefixGroups:
    """Finds groups of decode rows that share whole pages at their start.

    Pages of a running sequence stay where they are, so the groups hold as long as the rows are the same.
    """

    def __init__(self, num_q_heads: int, num_kv_heads: int, page_size: int) -> None:
        self._num_kv_heads = num_kv_heads
        self._page_size = page_size
        self._rows_per_tile = rows_per_tile(num_q_heads, num_kv_heads)
        self._tables: list[Sequence[int]] = []
        self._groups: SharedGroups | None = None

    def of(self, tables: Sequence[Sequence[int]], positions: np.ndarray) -> SharedGroups | None:
        """The groups of decode rows with these page tables, None where sharing does not pay.

        ``positions`` [B]: where their tokens stand. Rows are the same if their tables are the same lists,
        however they have grown. Rows of one sequence, one behind the other (drafts), share the pages before
        all of them.
        """
        known = self._tables
        if len(tables) != len(known) or not all(map(is_, tables, known)):
            self._tables = list(tables)
            self._groups = self._found(tables, positions)
        return self._groups

    def _found(self, tables: Sequence[Sequence[int]], positions: np.ndarray) -> SharedGroups | None:
        first_pages = {table[0] for table in tables if table}
        if len(first_pages) == len(tables):  # as a rule; where rows come and go this is asked every step
            return None
        # with the page that is being written
        pages = [table[: p // self._page_size + 1] for table, p in zip(tables, positions.tolist())]
        return group_rows(pages, self._page_size, self._rows_per_tile)

    def capacity(self, groups: SharedGroups) -> int:
        """Tiles to make room for in a graph that is to serve groups like these: a power of two."""
        return 1 << (len(groups.tile_lens) - 1).bit_length()

    def recorded(self, rows: torch.Tensor, lens: torch.Tensor, starts: torch.Tensor) -> SharedPrefixes:
        """The tensors of :func:`padded` as a recorded step reads them."""
        return SharedPrefixes(rows, lens, starts, num_prefix_splits(len(lens), self._num_kv_heads))

    def num_splits(self, groups: SharedGroups) -> int:
        """Parts to divide the prefixes into when they are all there is."""
        return num_prefix_splits(len(groups.tile_lens), self._num_kv_heads)


def padded(groups: SharedGroups, num_rows: int, num_tiles: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rows, lens, starts) of ``groups``, filled up to that many rows and tiles that share nothing."""
    used, width = groups.tile_rows.shape
    rows = np.full((num_tiles, width), -1, dtype=np.int32)
    lens, starts = np.zeros(num_tiles, dtype=np.int32), np.zeros(num_rows, dtype=np.int32)
    rows[:used], lens[:used], starts[: len(groups.kv_starts)] = (
        groups.tile_rows,
        groups.tile_lens,
        groups.kv_starts,
    )
    return rows, lens, starts
