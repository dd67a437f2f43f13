"""The gated feed-forward block: ``down(act(gate(x)) * up(x))``."""

from __future__ import annotations

from typing import Final

from torch import Tensor

from ...cache.kv_cache import LayerKV
from ...errors import ModelError
from ..forward import ForwardInput
from .make import Make
from .part import Part
from .residual import Promise, Residual
from .slots import NamedSlots

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

    ``size`` is that of the gated layer, ``activation`` its name in transformers; by default what the
    configuration says. Raises ModelError for an activation it does not know.
    """

    __slots__ = ("activation", "down", "gate_up")

    def __init__(
        self, make: Make, *, size: int | None = None, activation: str | None = None, bias: bool = False
    ) -> None:
        config, names = make.config, make.names
        if size is None:
            size = config.read("intermediate_size", int, minimum=1)
        if activation is None:
            activation = config.read("hidden_act", str, "silu")
        if activation not in _ACTIVATIONS:
            supported = ", ".join(_ACTIVATIONS)
            raise ModelError(
                f"config.json: hidden_act = {activation!r} is not supported. Supported: {supported}."
            )
        self.activation = _ACTIVATIONS[activation]
        hidden = config.hidden_size
        self.gate_up = make.linear(hidden, {names.gate: size, names.up: size}, bias=bias, split="out")
        self.down = make.linear(size, {names.down: hidden}, bias=bias, split="in")

    def weights(self) -> NamedSlots:
        """Checkpoint names, relative to this part."""
        yield from self.gate_up.weights()
        yield from self.down.weights()

    def forward(self, x: Tensor | Promise, inp: ForwardInput, kv: LayerKV) -> Tensor:  # noqa: ARG002
        """The branch ``[T, H]`` for x ``[T, H]``."""
        return self.down.forward(self.gate_up.forward_gated(x, inp, self.activation), inp)

    def forward_into(
        self,
        x: Tensor | Promise,
        inp: ForwardInput,
        stream: Residual,
        kv: LayerKV,  # noqa: ARG002
    ) -> None:
        """Add the branch for x ``[T, H]`` to ``stream``."""
        self.down.forward_into(self.gate_up.forward_gated(x, inp, self.activation), inp, stream)
