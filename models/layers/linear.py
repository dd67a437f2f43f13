"""Linear layers, whose rows may come from several checkpoint tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ...kernels.device import on_gpu
from ...kernels.linear import linear, linear_add
from ..forward import ForwardInput
from .residual import Promise, Residual
from .storage import DenseStorage, NamedSlots, PackedStorage, WeightSlot


class Linear:
    """``y = x W^T + b``, where W and b have so many ``rows`` of each name, one after the other.

    A plain projection has one name, ``{"o_proj": H}``; merged ones several, ``{"gate_proj": I,
    "up_proj": I}``, so that one multiplication does the work of all.
    """

    __slots__ = ("_rows", "bias", "weight")

    def __init__(self, rows: Mapping[str, int], weight: PackedStorage, bias: DenseStorage | None) -> None:
        self._rows = dict(rows)
        self.weight = weight
        self.bias = bias

    def weights(self) -> NamedSlots:
        """Checkpoint names: ``<name>.weight`` and, where there is one, ``<name>.bias``."""
        start = 0
        for name, size in self._rows.items():
            yield f"{name}.weight", WeightSlot(self.weight, start, start + size)
            if self.bias is not None:
                yield f"{name}.bias", WeightSlot(self.bias, start, start + size)
            start += size

    def forward(
        self,
        x: Tensor | Promise,
        inp: ForwardInput | None,  # noqa: ARG002
        out_dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Multiply x ``[T, K]`` -> ``[T, N]`` in ``out_dtype`` (default: that of x).

        ``inp`` is the step that x belongs to; None behind the last layer, where a row is a state of any step.
        """
        return self._multiply(x, out_dtype, None)

    def forward_gated(self, x: Tensor | Promise, inp: ForwardInput, activation: str) -> Tensor:  # noqa: ARG002
        """``act(gate) * up`` ``[T, N / 2]`` for rows gate | up; activations as in ``kernels.activation``."""
        return self._multiply(x, None, activation)

    def forward_into(self, x: Tensor, inp: ForwardInput, stream: Residual) -> None:  # noqa: ARG002
        """Add the product ``[T, N]`` of x ``[T, K]`` to ``stream``: while writing it, where that is free."""
        if on_gpu(x):
            linear_add(x, self.weight.packed, self._bias, stream.in_place())
        else:
            stream.add(linear(x, self.weight.packed, self._bias))

    def _multiply(self, x: Tensor | Promise, out_dtype: torch.dtype | None, activation: str | None) -> Tensor:
        norm = None
        if isinstance(x, Promise):
            x, norm = x.take()
        return linear(x, self.weight.packed, self._bias, out_dtype, norm=norm, activation=activation)

    @property
    def _bias(self) -> Tensor | None:
        return None if self.bias is None else self.bias.data
