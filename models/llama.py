"""Llama 1, 2, 3 and 3.x, and the many models that are saved under their name."""

from __future__ import annotations

from .layers.attention import Attention
from .layers.decoder import CausalLM
from .layers.layers import PreNormLayer
from .layers.make import Make
from .layers.mlp import GatedMLP
from .layers.part import Layer


class LlamaForCausalLM(CausalLM):
    """Llama (arXiv:2302.13971, 2307.09288, 2407.21783); biases where the configuration asks for them."""

    def layer(self, index: int, make: Make) -> Layer:  # noqa: ARG002
        """All layers alike."""
        names = make.names
        bias = self.config.read("attention_bias", bool, False)
        mlp_bias = self.config.read("mlp_bias", bool, False)
        return PreNormLayer(
            names,
            Attention(make.at(names.attention), self.rotary, make.heads, qkv_bias=bias, output_bias=bias),
            GatedMLP(make.at(names.mlp), bias=mlp_bias),
            make.rms_norm(),
            make.rms_norm(),
        )
