"""The gated feed-forward block: ``down(act(gate(x)) * up(x))``."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from ...cache.kv_cache import LayerKV
from ...errors import ModelError
from ..forward import ForwardInput
from .linear import Linear
from .part import Part
from .residual import Promise, Residual
from .storage import NamedSlots

# hidden_act -> name in kernels.activation; the names of one formula differ only in how it was once coded
_ACTIVATIONS: Final = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


class GatedMLP(Part):
    """Feed-forward block with a gate (SwiGLU and kin, arXiv:2002.05202).

    Raises ModelError for an activation it does not know.
    """

    __slots__ = ("_activation", "down", "gate_up")

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        activation: str,
        *,
        bias: bool,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        if activation not in _ACTIVATIONS:
            supported = ", ".join(_ACTIVATIONS)
            raise ModelError(
                f"config.json: hidden_act = {activation!r} is not supported. Supported: {supported}."
            )
        self._activation = _ACTIVATIONS[activation]
        gate_up = {"gate_proj": intermediate_size, "up_proj": intermediate_size}
        self.gate_up = Linear(hidden_size, gate_up, bias=bias, dtype=dtype, device=device)
        self.down = Linear(
            intermediate_size, {"down_proj": hidden_size}, bias=bias, dtype=dtype, device=device
        )

    def weights(self) -> NamedSlots:
        """Checkpoint names, relative to this part."""
        yield from self.gate_up.weights()
        yield from self.down.weights()

    def forward(self, x: Tensor | Promise, inp: ForwardInput, kv: LayerKV) -> Tensor:  # noqa: ARG002
        """The branch ``[T, H]`` for x ``[T, H]``."""
        return self.down.forward(self.gate_up.forward_gated(x, inp, self._activation), inp)

    def forward_into(
        self,
        x: Tensor | Promise,
        inp: ForwardInput,
        stream: Residual,
        kv: LayerKV,  # noqa: ARG002
    ) -> None:
        """Add the branch for x ``[T, H]`` to ``stream``."""
        self.down.forward_into(self.gate_up.forward_gated(x, inp, self._activation), inp, stream)
