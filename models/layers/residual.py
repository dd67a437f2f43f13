"""The residual stream of a forward pass, and what reads and adds to it.

A branch is added as late as possible, so that it costs no pass of its own: the next norm adds it, or the
product that makes it does as it writes (on a GPU). Layers need not know: a reader finds the stream complete.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from ...kernels.norm import NormWeight, rms_norm
from ..forward import ForwardInput
from .slots import NamedSlots


class Norm(Protocol):
    """A normalisation of rows ``[T, H]``."""

    def weights(self) -> NamedSlots:
        """Checkpoint names, relative to this part."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x ``[T, H]``; a new tensor."""

    def add_forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """Add x to ``residual`` in place and return the normalised sum, ``[T, H]`` all three."""

    def for_products(self) -> NormWeight | None:
        """What a product needs to normalise its input on the way; None if this kind of norm stands alone."""


class Residual:
    """The residual stream ``[T, H]`` of one pass; ``values``, its beginning, is taken over."""

    __slots__ = ("_branch", "_moves", "_values")

    def __init__(self, values: Tensor) -> None:
        self._values = values
        self._branch: Tensor | None = None  # still to be added
        self._moves = 0  # how often something was added

    def normed(self, norm: Norm) -> Tensor:
        """The stream, normalised: a tensor ``[T, H]`` of its own, to be used as often as wanted."""
        branch, self._branch = self._branch, None
        return norm.forward(self._values) if branch is None else norm.add_forward(branch, self._values)

    def promised(self, norm: Norm | None) -> Tensor | Promise:
        """The stream, normalised unless ``norm`` is None, for the one product that comes next.

        Where nothing is to be added and a product can normalise on its way, that is left to it.
        """
        if norm is None:
            self._complete()
            return Promise(self, self._values, None)
        branch = self._branch
        if branch is not None:
            self._branch = None
            return norm.add_forward(branch, self._values)
        weight = norm.for_products()
        return norm.forward(self._values) if weight is None else Promise(self, self._values, weight)

    def add(self, branch: Tensor) -> None:
        """Add ``branch`` ``[T, H]``, which nobody else may change from here on."""
        if self._branch is not None:
            self._complete()
        self._branch = branch
        self._moves += 1

    def in_place(self) -> Tensor:
        """The stream's memory ``[T, H]``, for a kernel that adds to it before anything else happens here."""
        self._complete()
        self._moves += 1
        return self._values

    def keep(self, inp: ForwardInput) -> None:
        """Go on with the wanted tokens alone ``[S, H]``: in each layer, after its first norm."""
        if inp.wanted is not None:
            self._complete()
            self._values = inp.keep(self._values)

    def _complete(self) -> None:
        """Add what is still to be added."""
        if self._branch is not None:
            if self._branch.shape != self._values.shape:
                raise AssertionError(
                    f"A branch {list(self._branch.shape)} was added to a stream {list(self._values.shape)}."
                )
            self._values += self._branch
            self._branch = None


class Promise:
    """The residual stream ``[T, H]`` as it is now, to be normalised by the product that takes it.

    It shares the stream's memory, so it is good for one use, before anything is added.
    """

    __slots__ = ("_made_at", "_stream", "_values", "_weight")

    def __init__(self, stream: Residual, values: Tensor, weight: NormWeight | None) -> None:
        self._stream = stream
        self._values = values
        self._weight = weight
        self._made_at = stream._moves

    def take(self) -> tuple[Tensor, NormWeight | None]:
        """The stream and how to normalise it (None: not at all). AssertionError if it is too late."""
        if self._made_at != self._stream._moves:
            raise AssertionError(
                "A promise of the residual stream was used a second time, or after something was added to the"
                " stream. Take stream.normed(norm) for an input that is used more than once."
            )
        self._made_at = -1
        return self._values, self._weight


def as_tensor(x: Tensor | Promise) -> Tensor:
    """``x`` ``[T, H]`` for a part that begins with something else than a product."""
    if isinstance(x, Tensor):
        return x
    values, weight = x.take()
    return values.clone() if weight is None else rms_norm(values, *weight)
