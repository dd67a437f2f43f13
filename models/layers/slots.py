"""Which part of which tensor each name of a checkpoint fills, and how its values lie there.

A slot is one name. Most fill rows of a store; the others wrap a slot and say how the checkpoint's tensor
differs from what is kept::

    Rows(store, 0, 8)                       rows 0..8
    Columns(Rows(store, 0, 8), 4, 6)        of these, columns 4 and 5
    Transposed(Rows(store, 0, 8))           the checkpoint has [K, N] (Conv1D of GPT-2)
    RotaryPairs(Rows(store, 0, 8), heads=2) pairs of dimensions side by side become halves of a head
    Expanded(Rows(scales, 0, 8))            one value for all rows (a scale per tensor)
    Shard(Rows(store, 0, 8), 0, ranks)      the checkpoint has the rows of all ranks
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .names import dotted
from .storage import Store


class Ranks(NamedTuple):
    """Which of ``size`` processes, that compute a model together, this one is."""

    rank: int = 0
    size: int = 1


class Slot(Protocol):
    """One name of a checkpoint."""

    shape: tuple[int, ...]  # of the checkpoint's tensor

    @property
    def dtype(self) -> torch.dtype:
        """The type that its values are kept in."""

    @property
    def stores(self) -> tuple[Store, ...]:
        """What it fills."""

    def accepts(self, dtype: torch.dtype) -> bool:
        """Whether a tensor of that type can be loaded."""

    def load(self, tensor: Tensor) -> None:
        """Take a tensor of this slot's shape."""

    def get(self) -> Tensor | None:
        """The tensor as the checkpoint has it, possibly a view of the store; None if nothing was loaded."""

    def view(self) -> Tensor | None:
        """The memory that it fills, in the checkpoint's order; None where that is no view, or not there."""


class _Placed(ABC):
    """A slot of one store, given by where in the store's tensor it lies."""

    def __init__(self, store: Store, shape: tuple[int, ...]) -> None:
        self.store = store
        self.shape = shape

    @property
    def dtype(self) -> torch.dtype:
        return self.store.dtype

    @property
    def stores(self) -> tuple[Store, ...]:
        return (self.store,)

    def accepts(self, dtype: torch.dtype) -> bool:
        """Floats are rounded to floats; all else must be as it is kept."""
        return dtype == self.dtype or (dtype.is_floating_point and self.dtype.is_floating_point)

    @abstractmethod
    def place(self, memory: Tensor) -> Tensor:
        """The view of the store's whole tensor that the values fill, in the checkpoint's order."""

    def load(self, tensor: Tensor) -> None:
        """Copy a tensor of this slot's shape into the store."""
        self.store.write(self.place, tensor)

    def get(self) -> Tensor | None:
        """A view of the store's tensor."""
        memory = self.store.read()
        return None if memory is None else self.place(memory)

    def view(self) -> Tensor | None:
        """A view of the store's memory, where values lie in it as they are."""
        memory = self.store.memory()
        return None if memory is None else self.place(memory)


class Rows(_Placed):
    """Rows ``start..stop`` of a store."""

    def __init__(self, store: Store, start: int, stop: int) -> None:
        super().__init__(store, (stop - start, *store.shape[1:]))
        self._range = (start, stop)

    def place(self, memory: Tensor) -> Tensor:
        """These rows."""
        return memory[slice(*self._range)]


class Columns(_Placed):
    """Columns ``start..stop`` of another slot."""

    def __init__(self, slot: _Placed, start: int, stop: int) -> None:
        super().__init__(slot.store, (slot.shape[0], stop - start, *slot.shape[2:]))
        self._slot, self._range = slot, (start, stop)

    def place(self, memory: Tensor) -> Tensor:
        """These columns."""
        return self._slot.place(memory)[:, slice(*self._range)]


class Transposed(_Placed):
    """A slot ``[N, K]`` whose tensor is ``[K, N]`` in the checkpoint."""

    def __init__(self, slot: _Placed) -> None:
        super().__init__(slot.store, slot.shape[::-1])
        self._slot = slot

    def place(self, memory: Tensor) -> Tensor:
        """The same memory, read the other way."""
        return self._slot.place(memory).t()


class _Wrapped:
    """A slot that changes a tensor on its way to another slot and back."""

    def __init__(self, slot: Slot, shape: tuple[int, ...]) -> None:
        self._slot = slot
        self.shape = shape

    @property
    def dtype(self) -> torch.dtype:
        return self._slot.dtype

    @property
    def stores(self) -> tuple[Store, ...]:
        return self._slot.stores

    def accepts(self, dtype: torch.dtype) -> bool:
        return self._slot.accepts(dtype)

    def view(self) -> Tensor | None:
        """Values change on their way."""
        return None


class RotaryPairs(_Wrapped):
    """Rows of heads whose rotated dimensions 2i and 2i + 1 are kept as i and i + dim/2.

    That is how our rotary kernels pair them; GPT-J and GLM pair neighbours (arXiv:2104.09864). Scores are
    sums over the dimensions of a head, so any order will do that q and k share. The first ``dim`` of a
    head's dimensions are rotated, by default all; the rest stays in place.
    """

    def __init__(self, slot: Slot, heads: int, dim: int | None = None) -> None:
        super().__init__(slot, slot.shape)
        self._heads = heads
        self._dim = slot.shape[0] // heads if dim is None else dim

    def load(self, tensor: Tensor) -> None:
        """Take the values in the checkpoint's order."""
        self._slot.load(self._reordered(tensor, (-1, 2)))

    def get(self) -> Tensor | None:
        """A copy, in the checkpoint's order."""
        kept = self._slot.get()
        return None if kept is None else self._reordered(kept, (2, -1))

    def _reordered(self, tensor: Tensor, grid: tuple[int, int]) -> Tensor:
        """``tensor`` ``[heads * D, ...]`` with the rotated rows of each head laid out as ``grid`` and read
        column by column."""
        heads = tensor.reshape(self._heads, -1, *tensor.shape[1:])
        rotated, rest = heads[:, : self._dim], heads[:, self._dim :]
        rotated = rotated.unflatten(1, grid).transpose(1, 2).flatten(1, 2)
        return torch.cat((rotated, rest), dim=1).reshape(tensor.shape)


class Expanded(_Wrapped):
    """One value of the checkpoint, of shape ``[]`` or ``[1]``, that all of another slot has."""

    def __init__(self, slot: Slot, shape: tuple[int, ...] = ()) -> None:
        super().__init__(slot, shape)

    def load(self, tensor: Tensor) -> None:
        """Fill the other slot with the value."""
        self._slot.load(tensor.reshape(()).expand(self._slot.shape))

    def get(self) -> Tensor | None:
        """The value."""
        kept = self._slot.get()
        return None if kept is None else kept.flatten()[0].reshape(self.shape)


class Shard(_Wrapped):
    """This rank's part of the checkpoint's tensor, which ranks divide along ``dim``.

    The tensor is narrowed before it is read: of a mapped file the other parts stay on disk. ``get`` gives
    this rank's part alone.
    """

    def __init__(self, slot: Slot, dim: int, ranks: Ranks) -> None:
        sizes = list(slot.shape)
        sizes[dim] *= ranks.size
        super().__init__(slot, tuple(sizes))
        self._dim, self._ranks = dim, ranks

    def load(self, tensor: Tensor) -> None:
        """Take this rank's part."""
        size = self._slot.shape[self._dim]
        self._slot.load(tensor.narrow(self._dim, self._ranks.rank * size, size))

    def get(self) -> Tensor | None:
        """This rank's part."""
        return self._slot.get()


def whole(store: Store) -> Rows:
    """The slot of a name that fills all of a store."""
    return Rows(store, 0, store.shape[0])


NamedSlots = Iterable[tuple[str, Slot]]


def prefixed(prefix: str, slots: NamedSlots) -> Iterator[tuple[str, Slot]]:
    """Put the part's own name, if it has one, before the names in it."""
    return ((dotted(prefix, name), slot) for name, slot in slots)


def stores_of(slots: NamedSlots) -> list[Store]:
    """Every store that ``slots`` fill, once."""
    return list({id(store): store for _, slot in slots for store in slot.stores}.values())
