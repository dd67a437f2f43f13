"""Qwen2 and Qwen2.5."""

from __future__ import annotations

from ..errors import ModelError
from .interface import Output
from .layers.decoder import CausalLM, LayerSpec


class Qwen2ForCausalLM(CausalLM):
    """Qwen2 (arXiv:2407.10671): biases on q, k, v; a sliding window in the upper layers if switched on."""

    def layer_spec(self, index: int) -> LayerSpec:
        """Window by ``layer_types`` where given, else from layer ``max_window_layers`` on."""
        return LayerSpec(qkv_bias=True, window=self._window() if self._is_sliding(index) else None)

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


class Qwen2ForSequenceClassification(Qwen2ForCausalLM):
    """A classifier or reward model: scores of the last token."""

    output = Output.SCORES


class Qwen2Model(Qwen2ForCausalLM):
    """An embedding model: the decoder without a head."""

    output = Output.STATES
