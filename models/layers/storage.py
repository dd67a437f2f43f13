"""Where weights live, and which part of them each name of a checkpoint fills.

A storage is created empty and takes memory when its first rows arrive; rows that arrive later are
copied into it, so that a reload keeps every address. A :class:`WeightSlot` is one checkpoint name:
all rows of a storage, or those of one projection within a merged one.

Values may have their *home* elsewhere than where a layer finds them (``offload.py``): loads and reads go to
the home, and somebody copies it to the place that the layer reads before the layer runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ...kernels.linear import PackedWeight, pack_weight
from .names import dotted


class Room(NamedTuple):
    """Memory for one storage, both of its shape and dtype, rows as they are."""

    home: Tensor  # what is loaded and read back
    seen: Tensor  # what the layer computes with; a copy of home while the layer runs


class Storage(Protocol):
    """A tensor filled row by row; ``shape`` is that of the whole."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def move(self, room: Room) -> None:
        """Take this memory instead of any of its own. AssertionError if there is some already."""

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

    __slots__ = ("_device", "_home", "_room", "data", "dtype", "shape")

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        self.shape = shape
        self.dtype = dtype
        self._device = device
        self._room: Room | None = None
        self._home: Tensor | None = None
        self.data: Tensor | None = None

    def move(self, room: Room) -> None:
        """Take this memory at the first write."""
        _check_empty(self.data, self._room)
        self._room = room

    def write(self, start: int, stop: int, tensor: Tensor) -> None:
        """Copy ``tensor`` into rows start..stop, allocating all rows at the first call."""
        if self._home is None:
            if self._room is None:
                own = torch.empty(self.shape, dtype=self.dtype, device=self._device)
                self._room = Room(own, own)
            self._home, self.data = self._room
        self._home[start:stop].copy_(tensor)

    def read(self, start: int, stop: int) -> Tensor | None:
        """A view of the rows start..stop."""
        return None if self._home is None else self._home[start:stop]

    def finish(self) -> None:
        """Nothing is staged here."""

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        return 0 if self._home is None else self._home.nbytes


class PackedStorage:
    """A matrix ``[N, K]`` held in the layout of its multiplication, packed once all rows arrived.

    Rows of a merged matrix wait unpacked until the last of them is there, in any order. When
    packed values exist already, rows are replaced in an unpacked copy that is packed into the same
    memory, at the last row or when the load ends.
    """

    __slots__ = (
        "_device",
        "_home",
        "_room",
        "_rows_missing",
        "_staged",
        "batch_invariant",
        "dtype",
        "packed",
        "shape",
    )

    def __init__(self, shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> None:
        self.shape = shape
        self.dtype = dtype
        self._device = device
        self._room: Room | None = None
        self._staged: Tensor | None = None
        self._rows_missing = 0
        self._home: PackedWeight | None = None
        self.packed: PackedWeight | None = None
        self.batch_invariant = False  # which kernels to pack for; set before the first rows arrive

    def move(self, room: Room) -> None:
        """Take this memory for the packed rows, which are then those of a GPU: as they are."""
        _check_empty(self.packed, self._staged, self._room)
        self._room = room
        self._device = room.home.device

    def write(self, start: int, stop: int, tensor: Tensor) -> None:
        """Take the rows start..stop; pack when no row is missing."""
        if self._staged is None:
            self._rows_missing = self.shape[0]
            if self._room is not None and self._home is None:
                self._staged = self._room.home
            else:
                self._staged = torch.empty(self.shape, dtype=self.dtype, device=self._device)
            if self._home is not None and stop - start < self.shape[0]:
                self._staged.copy_(self._home.unpack())
        self._staged[start:stop].copy_(tensor)
        self._rows_missing -= stop - start
        if self._rows_missing == 0:
            self.finish()

    def read(self, start: int, stop: int) -> Tensor | None:
        """The rows start..stop, unpacked."""
        return None if self._home is None else self._home.unpack()[start:stop]

    def finish(self) -> None:
        """Pack what is staged, unless rows are missing that were never loaded: then drop it."""
        staged, self._staged = self._staged, None
        if staged is None:
            return
        if self._home is not None:
            self._home.copy_(staged)
        elif self._rows_missing == 0:
            if self._room is None:
                self._home = self.packed = pack_weight(staged, batch_invariant=self.batch_invariant)
            else:
                self._home = pack_weight(self._room.home, in_panels=False)
                self.packed = pack_weight(
                    self._room.seen, in_panels=False, batch_invariant=self.batch_invariant
                )

    @property
    def nbytes(self) -> int:
        """Bytes held now, staged rows included."""
        staged = 0 if self._staged is None else self._staged.nbytes
        return staged + (0 if self._home is None else self._home.nbytes)


def _check_empty(*held: object) -> None:
    if any(item is not None for item in held):
        raise AssertionError("A storage is moved once, before its first rows arrive.")


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
    """Put the part's own name, if it has one, before the names in it."""
    return ((dotted(prefix, name), slot) for name, slot in slots)
