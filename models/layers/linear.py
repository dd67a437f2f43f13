"""Linear layers, whose rows may come from several checkpoint tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ...kernels.linear import linear, linear_add
from ...kernels.norm import NormWeight
from .norm import Normed
from .storage import DenseStorage, NamedSlots, PackedStorage, WeightSlot


class Linear:
    """``y = x W^T + b`` with the rows of W and b in named shards, one after the other.

    A plain projection has one shard, ``{"o_proj": H}``; merged ones several, ``{"gate_proj": I,
    "up_proj": I}``, so that one multiplication does the work of all.
    """

    __slots__ = ("_shards", "bias", "weight")

    def __init__(
        self,
        in_features: int,
        shards: Mapping[str, int],
        *,
        bias: bool = False,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        out_features = sum(shards.values())
        self._shards = dict(shards)
        self.weight = PackedStorage((out_features, in_features), dtype, device)
        self.bias = DenseStorage((out_features,), dtype, device) if bias else None

    def weights(self) -> NamedSlots:
        """Checkpoint names: ``<shard>.weight`` and, where there is one, ``<shard>.bias``."""
        start = 0
        for name, size in self._shards.items():
            yield f"{name}.weight", WeightSlot(self.weight, start, start + size)
            if self.bias is not None:
                yield f"{name}.bias", WeightSlot(self.bias, start, start + size)
            start += size

    def forward(self, x: Tensor | Normed, out_dtype: torch.dtype | None = None) -> Tensor:
        """Multiply x ``[T, K]`` -> ``[T, N]`` in ``out_dtype`` (default: that of x)."""
        return self._multiply(x, out_dtype, None)

    def forward_gated(self, x: Tensor | Normed, activation: str) -> Tensor:
        """``act(gate) * up`` ``[T, N / 2]`` for rows gate | up; activations as in ``kernels.activation``."""
        return self._multiply(x, None, activation)

    def forward_add(self, x: Tensor, residual: Tensor) -> Tensor | None:
        """Add the product ``[T, N]`` to ``residual`` in place and return None, or return it to be added."""
        return linear_add(x, self.weight.packed, self._bias, residual)

    def _multiply(self, x: Tensor | Normed, out_dtype: torch.dtype | None, activation: str | None) -> Tensor:
        norm = None
        if isinstance(x, Normed):
            x, norm = x.residual, NormWeight(x.norm.weight.data, x.norm.eps)
        return linear(x, self.weight.packed, self._bias, out_dtype, norm=norm, activation=activation)

    @property
    def _bias(self) -> Tensor | None:
        return None if self.bias is None else self.bias.data
