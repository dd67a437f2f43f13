"""Linear layers, whose rows may come from several checkpoint tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ...kernels.linear import gated_linear, linear, linear_add, norm_gated_linear, norm_linear
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
        if isinstance(x, Normed):
            if out_dtype is None:
                return norm_linear(x.residual, x.norm.weight.data, x.norm.eps, self.weight.packed, self._bias)
            x = x.compute()
        return linear(x, self.weight.packed, self._bias, out_dtype)

    def forward_gated(self, x: Tensor | Normed, activation: str) -> Tensor:
        """``act(gate) * up`` ``[T, N / 2]`` for rows gate | up; activations as in ``kernels.activation``."""
        weight, bias = self.weight.packed, self._bias
        if isinstance(x, Normed):
            return norm_gated_linear(x.residual, x.norm.weight.data, x.norm.eps, weight, bias, activation)
        return gated_linear(x, weight, bias, activation)

    def forward_add(self, x: Tensor, residual: Tensor) -> Tensor | None:
        """Add the product ``[T, N]`` to ``residual`` in place and return None, or return it to be added."""
        return linear_add(x, self.weight.packed, self._bias, residual)

    @property
    def _bias(self) -> Tensor | None:
        return None if self.bias is None else self.bias.data
