"""Norms with their weights: root mean square, and the older one with mean and bias."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...kernels.norm import NormWeight, add_rms_norm, rms_norm
from .slots import NamedSlots, whole
from .storage import TensorStore


class RMSNorm:
    """RMSNorm over the hidden size (arXiv:1910.07467), alone or after adding to the residual stream.

    ``offset`` is added to the weight, in fp32 and at every use: 1 where checkpoints hold what 1 is added to.
    """

    __slots__ = ("eps", "offset", "weight")

    def __init__(
        self, size: int, eps: float, dtype: torch.dtype, device: torch.device, *, offset: float = 0.0
    ) -> None:
        self.weight = TensorStore((size,), dtype, device)
        self.eps = eps
        self.offset = offset

    def weights(self) -> NamedSlots:
        """Checkpoint names, relative to this part."""
        yield "weight", whole(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x ``[T, H]``."""
        return rms_norm(x, self.weight.data, self.eps, self.offset)

    def add_forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """Add x to ``residual`` in place and return the normalised sum, ``[T, H]`` all three."""
        return add_rms_norm(x, residual, self.weight.data, self.eps, self.offset)

    def for_products(self) -> NormWeight:
        """Weight, eps and offset."""
        return NormWeight(self.weight.data, self.eps, self.offset)


class LayerNorm:
    """Normalisation to mean 0 and variance 1 (arXiv:1607.06450), with or without a bias, by torch."""

    __slots__ = ("bias", "eps", "weight")

    def __init__(
        self, size: int, eps: float, dtype: torch.dtype, device: torch.device, *, bias: bool = True
    ) -> None:
        self.weight = TensorStore((size,), dtype, device)
        self.bias = TensorStore((size,), dtype, device) if bias else None
        self.eps = eps

    def weights(self) -> NamedSlots:
        """Checkpoint names, relative to this part."""
        yield "weight", whole(self.weight)
        if self.bias is not None:
            yield "bias", whole(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x ``[T, H]``."""
        bias = None if self.bias is None else self.bias.data
        return F.layer_norm(x, x.shape[-1:], self.weight.data, bias, self.eps)

    def add_forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """Add x to ``residual`` in place and return the normalised sum, ``[T, H]`` all three."""
        residual += x
        return self.forward(residual)

    def for_products(self) -> None:
        """Nothing: no product knows this norm."""
