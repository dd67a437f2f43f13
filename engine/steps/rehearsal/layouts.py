"""The steps that a rehearsal runs, all of padding: between them they reach every kernel of a forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from ....kernels.gpu.long_prefill import MIN_MEAN_KEYS, UNIT
from ....kernels.gpu.prefix_groups import group_rows
from ..layout import StepLayout

_SHORT = 128  # tokens of a prompt that is computed at once


@dataclass(frozen=True)
class Extent:
    """How large steps may be: most rows that draw a token, most prompt tokens, tokens of a sequence.

    ``columns``: names of those that the model reads per token.
    """

    num_decodes: int
    num_prefill_tokens: int
    context_length: int
    page_size: int
    columns: tuple[str, ...] = ()

    @property
    def single(self) -> StepLayout:
        """One decode."""
        return self._rows(1, 1)

    @property
    def decodes(self) -> StepLayout:
        """The most decodes."""
        return self._rows(self.num_decodes, 1)

    @property
    def short(self) -> StepLayout:
        """A prompt of everyday."""
        return self._rows(1, min(self.num_prefill_tokens, _SHORT))

    @property
    def prefill(self) -> StepLayout:
        """The most prompt tokens."""
        return self._rows(1, self.num_prefill_tokens)

    def row_counts(self) -> list[int]:
        """Numbers of drawn tokens that differ in the kernels behind the last layer."""
        return _powers(self.num_decodes)

    def every(self) -> Iterator[StepLayout]:
        """Steps of all kinds: first those with the most kernels of their own.

        Which kernels take a product goes by its number of rows, and changes at powers of two at most.
        """
        yield self.single
        yield self.short
        for count in _powers(max(self.num_decodes, self.num_prefill_tokens)):
            yield self._rows(count, 1) if count <= self.num_decodes else self._rows(1, count)
        yield from self._shared()
        yield from self._long()

    def _rows(self, num_rows: int, num_tokens: int) -> StepLayout:
        return StepLayout.padding(num_rows, num_tokens, self.columns)

    def _shared(self) -> Iterator[StepLayout]:
        """Decodes that begin with the same pages: the fewest and the most for which it pays to share them.

        Few rows divide their contexts, many do not.
        """
        num_pages = min(UNIT, self.context_length - 1) // self.page_size
        pages = [0] * (num_pages + 1)
        counts = [
            count
            for count in _powers(self.num_decodes)
            if group_rows([pages] * count, self.page_size, count) is not None
        ]
        for count in dict.fromkeys((*counts[:1], *counts[-1:])):
            starts = np.full(count, num_pages * self.page_size, dtype=np.int32)
            yield replace(self._rows(count, 1), starts=starts, page_tables=(pages,) * count)

    def _long(self) -> Iterator[StepLayout]:
        """A chunk behind a long context, which cuDNN computes in parts."""
        begin = -(-MIN_MEAN_KEYS // UNIT) * UNIT
        if self.num_prefill_tokens >= UNIT and self.context_length >= begin + UNIT:
            yield replace(self._rows(1, UNIT), starts=np.full(1, begin, dtype=np.int32))


def _powers(limit: int) -> list[int]:
    """1, 2, 4, …, and ``limit``."""
    return [*(1 << bit for bit in range((limit - 1).bit_length())), limit]
