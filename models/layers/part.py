"""What a decoder is made of: parts, each a branch of the residual stream, and layers of parts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

from torch import Tensor

from ...cache.kv_cache import LayerKV
from ..forward import ForwardInput
from .residual import Promise, Residual
from .slots import NamedSlots


class Part(ABC):
    """A block of a layer: attention, feed-forward, what else there may be."""

    __slots__ = ()

    @abstractmethod
    def weights(self) -> NamedSlots:
        """Checkpoint names, relative to this part."""

    @abstractmethod
    def forward(self, x: Tensor | Promise, inp: ForwardInput, kv: LayerKV) -> Tensor:
        """The branch ``[T, H]`` for x ``[T, H]``, not added; attention's is ``[S, H]`` if S are wanted.

        ``inp`` is the step that x belongs to, ``kv`` what the layer keeps of sequences.
        """

    def forward_into(self, x: Tensor | Promise, inp: ForwardInput, stream: Residual, kv: LayerKV) -> None:
        """Add the branch to ``stream``; a part that ends in a product leaves the adding to it."""
        stream.add(self.forward(x, inp, kv))


class Layer(Protocol):
    """What a decoder layer is to the model, an offloaded one too."""

    def weights(self) -> NamedSlots:
        """Checkpoint names, relative to the layer."""

    def forward(self, stream: Residual, inp: ForwardInput, kv: LayerKV) -> None:
        """Add the layer's branches to the stream ``[T, H]``; leave ``[S, H]`` if S tokens are wanted."""
