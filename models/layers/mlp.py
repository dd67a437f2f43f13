"""The gated feed-forward block: ``down(act(gate(x)) * up(x))``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

import torch
from torch import Tensor

from ...errors import ModelError
from ...kernels.activation import gelu_and_mul, silu_and_mul
from .linear import Linear
from .storage import NamedSlots

_GELU: Final = partial(gelu_and_mul, approximate="none")
_GELU_TANH: Final = partial(gelu_and_mul, approximate="tanh")
# hidden_act -> act(gate) * up; the names of one formula differ only in how it was once coded
_ACTIVATIONS: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "silu": silu_and_mul,
    "swish": silu_and_mul,
    "gelu": _GELU,
    "gelu_python": _GELU,
    "gelu_new": _GELU_TANH,
    "gelu_fast": _GELU_TANH,
    "gelu_pytorch_tanh": _GELU_TANH,
}


class GatedMLP:
    """Feed-forward block with a gate (SwiGLU and kin, arXiv:2002.05202).

    Raises ModelError for an activation it does not know.
    """

    __slots__ = ("_activate", "down", "gate_up")

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
        self._activate = _ACTIVATIONS[activation]
        gate_up = {"gate_proj": intermediate_size, "up_proj": intermediate_size}
        self.gate_up = Linear(hidden_size, gate_up, bias=bias, dtype=dtype, device=device)
        self.down = Linear(
            intermediate_size, {"down_proj": hidden_size}, bias=bias, dtype=dtype, device=device
        )

    def weights(self) -> NamedSlots:
        """Checkpoint names, relative to this part."""
        yield from self.gate_up.weights()
        yield from self.down.weights()

    def forward(self, x: Tensor) -> Tensor:
        """Map x ``[T, H]`` to ``[T, H]``."""
        return self.down.forward(self._activate(self.gate_up.forward(x)))
