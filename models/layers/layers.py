"""How a layer strings its parts along the residual stream: where it normalises, and what it adds when."""

from __future__ import annotations

from ...cache.kv_cache import LayerKV
from ..forward import ForwardInput
from .part import Part
from .residual import Norm, Residual
from .storage import NamedSlots, prefixed


class PreNormLayer:
    """Attention, then feed-forward, each on the normalised stream (arXiv:2002.04745)."""

    __slots__ = ("attention", "input_norm", "mlp", "post_attention_norm")

    def __init__(self, attention: Part, mlp: Part, input_norm: Norm, post_attention_norm: Norm) -> None:
        self.attention = attention
        self.mlp = mlp
        self.input_norm = input_norm
        self.post_attention_norm = post_attention_norm

    def weights(self) -> NamedSlots:
        """Checkpoint names, relative to this layer."""
        yield from prefixed("self_attn.", self.attention.weights())
        yield from prefixed("mlp.", self.mlp.weights())
        yield from prefixed("input_layernorm.", self.input_norm.weights())
        yield from prefixed("post_attention_layernorm.", self.post_attention_norm.weights())

    def forward(self, stream: Residual, inp: ForwardInput, kv: LayerKV) -> None:
        """Add both branches to the stream."""
        x = stream.promised(self.input_norm)
        stream.keep(inp)
        self.attention.forward_into(x, inp, stream, kv)
        self.mlp.forward_into(stream.promised(self.post_attention_norm), inp, stream, kv)
