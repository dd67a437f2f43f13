"""Qwen2 and Qwen2.5."""

from __future__ import annotations

from ..errors import ModelError
from .layers.attention import Attention
from .layers.decoder import CausalLM
from .layers.layers import PreNormLayer
from .layers.make import Make
from .layers.mlp import GatedMLP
from .layers.part import Layer


class Qwen2ForCausalLM(CausalLM):
    """Qwen2 (arXiv:2407.10671): biases on q, k, v; a sliding window in the upper layers if switched on."""

    def layer(self, index: int, make: Make) -> Layer:
        """Window by ``layer_types`` where given, else from layer ``max_window_layers`` on."""
        names = make.names
        window = self._window() if self._is_sliding(index) else None
        return PreNormLayer(
            names,
            Attention(make.at(names.attention), self.rotary, make.heads, qkv_bias=True, window=window),
            GatedMLP(make.at(names.mlp)),
            make.rms_norm(),
            make.rms_norm(),
        )

    def _window(self) -> int | None:
        """Size of the window; None if windows are off."""
        window = self.config.read("sliding_window", int, 4096, null=True, minimum=1)
        return window if self.config.read("use_sliding_window", bool, False) else None

    def _is_sliding(self, index: int) -> bool:
        """Whether layer ``index`` has a window."""
        config = self.config
        layer_types = config.read("layer_types", list[str], None, null=True)
        if layer_types is None:
            return self._window() is not None and index >= config.read("max_window_layers", int, 28)
        known = {"full_attention", "sliding_attention"}
        if len(layer_types) != config.num_layers or not known.issuperset(layer_types):
            raise ModelError(
                f"config.json: layer_types must name one of {sorted(known)} for each of the "
                f"{config.num_layers} layers, got {layer_types}."
            )
        if "sliding_attention" in layer_types and self._window() is None:
            raise ModelError(
                "config.json: layer_types asks for sliding_attention, but sliding_window is null or "
                "use_sliding_window is false."
            )
        return layer_types[index] == "sliding_attention"
