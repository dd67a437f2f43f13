"""Llama 1, 2, 3 and 3.x, and the many models that are saved under their name."""

from __future__ import annotations

from .interface import Output
from .layers.decoder import CausalLM, LayerSpec


class LlamaForCausalLM(CausalLM):
    """Llama (arXiv:2302.13971, 2307.09288, 2407.21783); biases where the configuration asks for them."""

    def layer_spec(self, index: int) -> LayerSpec:  # noqa: ARG002
        """All layers alike."""
        attention_bias = self.config.read("attention_bias", bool, False)
        return LayerSpec(
            qkv_bias=attention_bias,
            output_bias=attention_bias,
            mlp_bias=self.config.read("mlp_bias", bool, False),
        )


class LlamaForSequenceClassification(LlamaForCausalLM):
    """A classifier or reward model: scores of the last token."""

    output = Output.SCORES


class LlamaModel(LlamaForCausalLM):
    """An embedding model: the decoder without a head."""

    output = Output.STATES


class LlamaEmbeddingModel(LlamaModel):
    """The same under the name that the documented system gives it."""
