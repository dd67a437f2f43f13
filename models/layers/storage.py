"""Where weights live: tensors that are filled as a checkpoint arrives, and stay where they are.

A store is created empty and takes memory when its first values arrive; values that arrive later are copied
into it, so that a reload keeps every address. Names of a checkpoint fill parts of stores: see ``slots.py``.

Values may have their *home* elsewhere than where a layer finds them (``offload.py``): loads and reads go to
the home, and somebody copies it to the place that the layer reads before the layer runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

Place = Callable[[Tensor], Tensor]
"""From a store's whole tensor to a view of the part that one name of a checkpoint fills."""


class Room(NamedTuple):
    """Memory for one store, both of its shape and dtype, rows as they are."""

    home: Tensor  # what is loaded and read back
    seen: Tensor  # what the layer computes with; a copy of home while the layer runs


class Store(Protocol):
    """One tensor, filled part by part."""

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the whole."""

    @property
    def dtype(self) -> torch.dtype:
        """The type that values are kept in."""

    def move(self, room: Room) -> None:
        """Take this memory instead of any of its own. AssertionError if there is some already."""

    def write(self, place: Place, values: Tensor) -> None:
        """Copy ``values``, of the shape that ``place`` gives, to that place, converting dtype and device."""

    def read(self) -> Tensor | None:
        """The whole tensor, possibly the memory itself; None before it was filled."""

    def memory(self) -> Tensor | None:
        """What is written to, if values lie in it as :meth:`read` gives them; None before it is there."""

    def finish(self) -> None:
        """Called when a load ends, with or without error."""

    @property
    def nbytes(self) -> int:
        """Bytes held now."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What the values lie in, however they lie; empty before it was filled."""


class TensorStore:
    """A plain tensor: scales of norms, biases, embedding tables, what formats of matrices are made of.

    ``data`` is where the layer finds it, from the first values on.
    """

    __slots__ = ("_device", "_home", "_room", "data", "dtype", "shape")

    data: Tensor

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        self.shape = shape
        self.dtype = dtype
        self._device = device
        self._room: Room | None = None
        self._home: Tensor | None = None

    def move(self, room: Room) -> None:
        """Take this memory at the first write."""
        check_empty(self._home, self._room)
        self._room = room

    def write(self, place: Place, values: Tensor) -> None:
        """Copy ``values`` to their place, allocating all at the first call."""
        if self._home is None:
            if self._room is None:
                own = torch.empty(self.shape, dtype=self.dtype, device=self._device)
                self._room = Room(own, own)
            self._home, self.data = self._room
        place(self._home).copy_(values)

    def read(self) -> Tensor | None:
        """The memory itself."""
        return self._home

    def memory(self) -> Tensor | None:
        """The whole tensor."""
        return self._home

    def finish(self) -> None:
        """Nothing is staged here."""

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        return 0 if self._home is None else self._home.nbytes

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The memory."""
        return () if self._home is None else (self._home,)


def check_empty(*held: object) -> None:
    """Raise AssertionError if any of what a store holds is there already."""
    if any(item is not None for item in held):
        raise AssertionError("A store is moved once, before its first rows arrive.")


# Where a tensor may begin: as far apart as torch's allocator places them, so that the same kernels fit.
_ALIGNMENT = 512


def total_bytes(stores: Iterable[Store]) -> int:
    """What :func:`lay_out` needs for them."""
    return sum(map(_aligned_bytes, stores))


def lay_out(memory: Tensor, stores: Iterable[Store]) -> list[Tensor]:
    """A tensor for each store, one after the other in ``memory``, uint8 of :func:`total_bytes` or more."""
    tensors, start = [], 0
    for store in stores:
        part = memory[start : start + _num_bytes(store)]
        tensors.append(part.view(store.dtype).view(store.shape))
        start += _aligned_bytes(store)
    return tensors


def _num_bytes(store: Store) -> int:
    return torch.Size(store.shape).numel() * store.dtype.itemsize


def _aligned_bytes(store: Store) -> int:
    return -(-_num_bytes(store) // _ALIGNMENT) * _ALIGNMENT
