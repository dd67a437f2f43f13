"""Where the matrices of linear layers live, by format, and which scheme chooses the format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from ...kernels.matrices.dense import DenseMatrix
from ...kernels.matrices.interface import Matrix
from ...kernels.matrices.packing import pack_weight
from ...kernels.matrices.panels import PanelMatrix
from .slots import NamedSlots, Ranks, Rows, Shard
from .storage import Place, Room, check_empty


class Split(NamedTuple):
    """Which dimension of a matrix ``[out, in]`` ranks divide among themselves."""

    along: Literal["out", "in"]
    ranks: Ranks

    @property
    def dim(self) -> int:
        """The dimension as a number."""
        return 0 if self.along == "out" else 1


class MatrixStorage(Protocol):
    """A matrix ``[N, K]`` of some format, and the tensors of a checkpoint that it comes from."""

    shape: tuple[int, int]

    @property
    def matrix(self) -> Matrix:
        """What to multiply by, once all values arrived; the same one through all loads."""

    def slots(self, start: int, stop: int, split: Split | None) -> NamedSlots:
        """What a checkpoint has for the projection in rows ``start..stop``, by the ends of its names.

        With a ``split`` the checkpoint's tensors are those of all ranks.
        """

    def use_batch_invariant_kernels(self) -> None:
        """Before the first load: a row of a product shall depend on that row alone, to the last bit.

        Raises ConfigError where the format has no such kernel.
        """


class Scheme(Protocol):
    """How the matrices of a model are held: which has what format."""

    def matrices(
        self, rows: Mapping[str, int], in_features: int, dtype: torch.dtype, device: torch.device
    ) -> Iterable[MatrixStorage]:
        """Where a merged matrix of so many ``rows`` of each projection will be, by their full names.

        One or several, whose rows follow one another; one projection is all in one of them. ``dtype`` is
        that of the activations. Raises ModelError where the format does not fit.
        """


class Dense:
    """Matrices of floats in the model's dtype, as checkpoints have them."""

    def matrices(
        self, rows: Mapping[str, int], in_features: int, dtype: torch.dtype, device: torch.device
    ) -> Iterable[MatrixStorage]:
        """One matrix for all projections."""
        return [FloatMatrix((sum(rows.values()), in_features), dtype, device)]


DENSE = Dense()


class FloatMatrix:
    """A matrix of floats, a store of its own, in the layout of its multiplication.

    Where rows are kept as they are, values are written straight to where they stay. Rows that are kept
    otherwise wait until the last of them is there, in any order; when packed values exist already, they are
    replaced in an unpacked copy that is packed into the same memory, at the last value or when the load ends.
    """

    __slots__ = (
        "_device",
        "_home",
        "_missing",
        "_open",
        "_room",
        "batch_invariant",
        "dtype",
        "matrix",
        "shape",
    )

    matrix: Matrix

    def __init__(self, shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> None:
        self.shape = shape
        self.dtype = dtype
        self._device = device
        self._room: Room | None = None
        self._open: Tensor | None = None  # what a load writes to, while one is under way
        self._missing = 0  # values that this load has not brought
        self._home: DenseMatrix | PanelMatrix | None = None
        self.batch_invariant = False

    def slots(self, start: int, stop: int, split: Split | None) -> NamedSlots:
        """The weight alone."""
        rows = Rows(self, start, stop)
        yield "weight", rows if split is None else Shard(rows, split.dim, split.ranks)

    def use_batch_invariant_kernels(self) -> None:
        """There are such kernels for floats of every kind."""
        self.batch_invariant = True

    def move(self, room: Room) -> None:
        """Take this memory for the rows, which are then those of a GPU: as they are."""
        check_empty(self._home, self._open, self._room)
        self._room = room
        self._device = room.home.device

    def write(self, place: Place, values: Tensor) -> None:
        """Take some values; the matrix is there when none is missing."""
        if self._open is None:
            self._missing = self.shape[0] * self.shape[1]
            self._open = self._begin(place)
        target = place(self._open)
        target.copy_(values)
        self._missing -= target.numel()
        if self._missing == 0:
            self.finish()

    def read(self) -> Tensor | None:
        """The matrix, unpacked; a copy where it is packed."""
        return None if self._home is None else self._home.dense()

    def memory(self) -> Tensor | None:
        """The rows, if they are kept as they are."""
        return None if self._home is None or self._open is not None else self._home.memory()

    def finish(self) -> None:
        """Pack what waits, unless values are missing that were never loaded: then drop it."""
        values, self._open = self._open, None
        if values is None:
            return
        if self._home is not None:
            if values is not self._home.memory():
                self._home.copy_(values)
        elif self._missing == 0:
            self._take(values)

    @property
    def nbytes(self) -> int:
        """Bytes held now, those of waiting rows included."""
        held = 0 if self._home is None else self._home.nbytes
        if self._open is None or (self._home is not None and self._open is self._home.memory()):
            return held
        return held + self._open.nbytes

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The matrix as its multiplication reads it."""
        return () if self._home is None else (self._home.storage,)

    def _begin(self, place: Place) -> Tensor:
        """What a load writes to, with the values of an earlier one where it may not bring all."""
        if self._home is None:
            if self._room is not None:
                return self._room.home
            return torch.empty(self.shape, dtype=self.dtype, device=self._device)
        memory = self._home.memory()
        if memory is None:
            memory = torch.empty(self.shape, dtype=self.dtype, device=self._device)
            if place(memory).numel() < memory.numel():
                memory.copy_(self._home.dense())
        return memory

    def _take(self, values: Tensor) -> None:
        """The first values are complete: they become the matrix."""
        if self._room is None:
            self._home = self.matrix = pack_weight(values, batch_invariant=self.batch_invariant)
        else:
            self._home = pack_weight(self._room.home, in_panels=False)
            self.matrix = pack_weight(self._room.seen, in_panels=False, batch_invariant=self.batch_invariant)
