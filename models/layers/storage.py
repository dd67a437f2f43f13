"""Where weights live, and which part of them each name of a checkpoint fills.

A storage is created empty and takes memory when its first rows arrive; rows that arrive later are
copied into it, so that a reload keeps every address. A :class:`WeightSlot` is one checkpoint name:
all rows of a storage, or those of one projection within a merged one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ...kernels.linear import PackedWeight, pack_weight


class Storage(Protocol):
    """A tensor filled row by row; ``shape`` is that of the whole."""

    shape: tuple[int, ...]

    def write(self, start: int, stop: int, tensor: Tensor) -> None:
        """Copy ``tensor`` into rows start..stop, converting dtype and device."""

    def read(self, start: int, stop: int) -> Tensor | None:
        """The rows start..stop, possibly a view of the storage; None before they were written."""

    def finish(self) -> None:
        """Called when a load ends, with or without error."""

    @property
    def nbytes(self) -> int:
        """Bytes held now."""


class DenseStorage:
    """A plain tensor: scales of norms, biases, embedding tables."""

    __slots__ = ("_device", "_dtype", "data", "shape")

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        self.shape = shape
        self._dtype = dtype
        self._device = device
        self.data: Tensor | None = None

    def write(self, start: int, stop: int, tensor: Tensor) -> None:
        """Copy ``tensor`` into rows start..stop, allocating all rows at the first call."""
        if self.data is None:
            self.data = torch.empty(self.shape, dtype=self._dtype, device=self._device)
        self.data[start:stop].copy_(tensor)

    def read(self, start: int, stop: int) -> Tensor | None:
        """A view of the rows start..stop."""
        return None if self.data is None else self.data[start:stop]

    def finish(self) -> None:
        """Nothing is staged here."""

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        return 0 if self.data is None else self.data.nbytes


class PackedStorage:
    """A matrix ``[N, K]`` held in the layout of its multiplication, packed once all rows arrived.

    Rows of a merged matrix wait unpacked until the last of them is there, in any order. When
    packed values exist already, rows are replaced in an unpacked copy that is packed into the same
    memory, at the last row or when the load ends.
    """

    __slots__ = ("_device", "_dtype", "_rows_missing", "_staged", "batch_invariant", "packed", "shape")

    def __init__(self, shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> None:
        self.shape = shape
        self._dtype = dtype
        self._device = device
        self._staged: Tensor | None = None
        self._rows_missing = 0
        self.packed: PackedWeight | None = None
        self.batch_invariant = False  # which kernels to pack for; set before the first rows arrive

    def write(self, start: int, stop: int, tensor: Tensor) -> None:
        """Take the rows start..stop; pack when no row is missing."""
        if self._staged is None:
            self._rows_missing = self.shape[0]
            self._staged = torch.empty(self.shape, dtype=self._dtype, device=self._device)
            if self.packed is not None and stop - start < self.shape[0]:
                self._staged.copy_(self.packed.unpack())
        self._staged[start:stop].copy_(tensor)
        self._rows_missing -= stop - start
        if self._rows_missing == 0:
            self.finish()

    def read(self, start: int, stop: int) -> Tensor | None:
        """The rows start..stop, unpacked."""
        return None if self.packed is None else self.packed.unpack()[start:stop]

    def finish(self) -> None:
        """Pack what is staged, unless rows are missing that were never loaded: then drop it."""
        staged, self._staged = self._staged, None
        if staged is None:
            return
        if self.packed is not None:
            self.packed.copy_(staged)
        elif self._rows_missing == 0:
            self.packed = pack_weight(staged, batch_invariant=self.batch_invariant)

    @property
    def nbytes(self) -> int:
        """Bytes held now, staged rows included."""
        staged = 0 if self._staged is None else self._staged.nbytes
        return staged + (0 if self.packed is None else self.packed.nbytes)


class WeightSlot(NamedTuple):
    """The rows of a storage that one checkpoint name fills."""

    storage: Storage
    start: int
    stop: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the checkpoint's tensor."""
        return (self.stop - self.start, *self.storage.shape[1:])

    def load(self, tensor: Tensor) -> None:
        """Copy a tensor of this slot's shape into the storage."""
        self.storage.write(self.start, self.stop, tensor)

    def get(self) -> Tensor | None:
        """The tensor as the checkpoint names it; None if nothing was loaded."""
        return self.storage.read(self.start, self.stop)


def whole(storage: Storage) -> WeightSlot:
    """The slot of a name that fills all of a storage."""
    return WeightSlot(storage, 0, storage.shape[0])


NamedSlots = Iterable[tuple[str, WeightSlot]]


def prefixed(prefix: str, slots: NamedSlots) -> Iterator[tuple[str, WeightSlot]]:
    """Put a prefix before the names of a part."""
    return ((prefix + name, slot) for name, slot in slots)
