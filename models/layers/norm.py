"""Root-mean-square normalisation with its weight."""

from __future__ import annotations

import torch
from torch import Tensor

from ...kernels.norm import NormWeight, add_rms_norm, rms_norm
from .storage import DenseStorage, NamedSlots, whole


class RMSNorm:
    """RMSNorm over the hidden size (arXiv:1910.07467), alone or after adding to the residual stream."""

    __slots__ = ("eps", "weight")

    def __init__(self, size: int, eps: float, dtype: torch.dtype, device: torch.device) -> None:
        self.weight = DenseStorage((size,), dtype, device)
        self.eps = eps

    def weights(self) -> NamedSlots:
        """Checkpoint names, relative to this part."""
        yield "weight", whole(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x ``[T, H]``."""
        return rms_norm(x, self.weight.data, self.eps)

    def add_forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """Add x to ``residual`` in place and return the normalised sum, ``[T, H]`` all three."""
        return add_rms_norm(x, residual, self.weight.data, self.eps)

    def for_products(self) -> NormWeight:
        """Weight and eps."""
        return NormWeight(self.weight.data, self.eps)
