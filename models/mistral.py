"""Mistral 7B and its successors of the same architecture."""

from __future__ import annotations

from ..errors import ModelError
from .interface import Output
from .layers.decoder import CausalLM, LayerSpec


class MistralForCausalLM(CausalLM):
    """Mistral (arXiv:2310.06825): a sliding window in every layer, unless it is null."""

    def layer_spec(self, index: int) -> LayerSpec:  # noqa: ARG002
        """All layers alike; an absent window is that of the first Mistral, as transformers has it."""
        window = self.config.read("sliding_window", int, 4096, null=True, minimum=1)
        kind = "full_attention" if window is None else "sliding_attention"
        layer_types = self.config.read("layer_types", list[str], [], null=True) or []
        if any(layer_type != kind for layer_type in layer_types):
            raise ModelError(
                f"config.json: MistralForCausalLM has {kind} in every layer (sliding_window is {window}), "
                f"but layer_types says {layer_types}."
            )
        return LayerSpec(window=window)


class MistralForSequenceClassification(MistralForCausalLM):
    """A classifier or reward model: scores of the last token."""

    output = Output.SCORES


class MistralModel(MistralForCausalLM):
    """An embedding model: the decoder without a head."""

    output = Output.STATES
