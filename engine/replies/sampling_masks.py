"""Which tokens could have been drawn, token by token of an output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, overload

from ..schedule.sampling_masks import unpack_mask

if TYPE_CHECKING:
    import numpy as np

    from ..schedule.sampling_masks import PackedMask


class SamplingMasks(Sequence["np.ndarray | None"]):
    """Entry i: the ids that output token i was drawn among, ascending [N] int32, or None: all of them.

    Kept packed, so it takes no more than a bit per token of the vocabulary; an entry is made when it is
    looked at. Equal if all entries are; ``list(masks)`` holds the arrays.
    """

    def __init__(self, packed: Sequence[PackedMask]) -> None:
        self._packed = tuple(packed)

    def __len__(self) -> int:
        return len(self._packed)

    @overload
    def __getitem__(self, index: int) -> np.ndarray | None: ...

    @overload
    def __getitem__(self, index: slice) -> SamplingMasks: ...

    def __getitem__(self, index: int | slice) -> SamplingMasks | np.ndarray | None:
        if isinstance(index, slice):
            return SamplingMasks(self._packed[index])
        return unpack_mask(self._packed[index])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SamplingMasks) and self._packed == other._packed

    def __hash__(self) -> int:
        return hash(self._packed)

    def __repr__(self) -> str:
        return f"<SamplingMasks of {len(self)} tokens>"
