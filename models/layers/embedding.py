"""Token embeddings: a table of their own, or the rows of the output head."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ...kernels.embedding import embed
from ..forward import ForwardInput
from .linear import Linear
from .slots import NamedSlots, whole
from .storage import TensorStore


class InputEmbedding(Protocol):
    """What the residual stream begins with."""

    def weights(self) -> NamedSlots:
        """Checkpoint names, relative to this part."""

    def forward(self, inp: ForwardInput) -> Tensor:
        """The stream of the step's T tokens, ``[T, H]``, a new tensor."""


class Embedding:
    """A table ``[V, H]`` of one row per token."""

    __slots__ = ("table",)

    def __init__(self, vocab_size: int, hidden_size: int, dtype: torch.dtype, device: torch.device) -> None:
        self.table = TensorStore((vocab_size, hidden_size), dtype, device)

    def weights(self) -> NamedSlots:
        """Checkpoint names, relative to this part."""
        yield "weight", whole(self.table)

    def rows(self, ids: Tensor) -> Tensor:
        """Rows of ids ``[T]`` int64 -> ``[T, H]``, a new tensor."""
        return embed(ids, self.table.data)

    def forward(self, inp: ForwardInput) -> Tensor:
        """Where the residual stream of a step begins, ``[T, H]``, a new tensor."""
        return inp.replaced(self.rows(inp.input_ids))


class TiedEmbedding:
    """The rows of the output head, so that the table is held once, in the head's layout."""

    __slots__ = ("_head",)

    def __init__(self, head: Linear) -> None:
        self._head = head

    def weights(self) -> NamedSlots:
        """Checkpoint names, relative to this part: the embedding's name fills the head's matrix."""
        (segment,) = self._head.segments
        yield from segment.slots(0, segment.shape[0], None)

    def rows(self, ids: Tensor) -> Tensor:
        """Rows of ids ``[T]`` int64 -> ``[T, H]``, a new tensor."""
        return self._head.rows(ids)

    def forward(self, inp: ForwardInput) -> Tensor:
        """Where the residual stream of a step begins, ``[T, H]``, a new tensor."""
        return inp.replaced(self.rows(inp.input_ids))
