"""Mistral 7B and its successors of the same architecture."""

from __future__ import annotations

from ..errors import ModelError
from .layers.attention import Attention
from .layers.decoder import CausalLM
from .layers.layers import PreNormLayer
from .layers.make import Make
from .layers.mlp import GatedMLP
from .layers.part import Layer


class MistralForCausalLM(CausalLM):
    """Mistral (arXiv:2310.06825): a sliding window in every layer, unless it is null."""

    def layer(self, index: int, make: Make) -> Layer:  # noqa: ARG002
        """All layers alike."""
        names = make.names
        return PreNormLayer(
            names,
            Attention(make.at(names.attention), self.rotary, make.heads, window=self._window()),
            GatedMLP(make.at(names.mlp)),
            make.rms_norm(),
            make.rms_norm(),
        )

    def _window(self) -> int | None:
        """Size of the window; an absent one is that of the first Mistral, as transformers has it."""
        window = self.config.read("sliding_window", int, 4096, null=True, minimum=1)
        kind = "full_attention" if window is None else "sliding_attention"
        layer_types = self.config.read("layer_types", list[str], [], null=True) or []
        if any(layer_type != kind for layer_type in layer_types):
            raise ModelError(
                f"config.json: MistralForCausalLM has {kind} in every layer (sliding_window is {window}), "
                f"but layer_types says {layer_types}."
            )
        return window
