"""How a layer strings its parts along the residual stream: where it normalises, and what it adds when."""

from __future__ import annotations

from ...cache.kv_cache import LayerKV
from ..forward import ForwardInput
from .names import Names
from .part import Part
from .residual import Norm, Residual
from .slots import NamedSlots, prefixed


class PreNormLayer:
    """Attention, then feed-forward, each on the normalised stream (arXiv:2002.04745).

    The norm before the feed-forward is the one that checkpoints call ``post_attention_norm``.
    """

    __slots__ = ("attention", "input_norm", "mlp", "names", "post_attention_norm")

    def __init__(
        self, names: Names, attention: Part, mlp: Part, input_norm: Norm, post_attention_norm: Norm
    ) -> None:
        self.names = names
        self.attention = attention
        self.mlp = mlp
        self.input_norm = input_norm
        self.post_attention_norm = post_attention_norm

    def weights(self) -> NamedSlots:
        """Checkpoint names, relative to this layer."""
        names = self.names
        yield from prefixed(names.attention, self.attention.weights())
        yield from prefixed(names.mlp, self.mlp.weights())
        yield from prefixed(names.input_norm, self.input_norm.weights())
        yield from prefixed(names.post_attention_norm, self.post_attention_norm.weights())

    def forward(self, stream: Residual, inp: ForwardInput, kv: LayerKV) -> None:
        """Add both branches to the stream."""
        x = stream.promised(self.input_norm)
        stream.keep(inp)
        self.attention.forward_into(x, inp, stream, kv)
        self.mlp.forward_into(stream.promised(self.post_attention_norm), inp, stream, kv)


class ParallelLayer:
    """Attention and feed-forward side by side, both on one normalised stream (GPT-J, arXiv:2204.02311)."""

    __slots__ = ("attention", "input_norm", "mlp", "names")

    def __init__(self, names: Names, attention: Part, mlp: Part, input_norm: Norm) -> None:
        self.names = names
        self.attention = attention
        self.mlp = mlp
        self.input_norm = input_norm

    def weights(self) -> NamedSlots:
        """Checkpoint names, relative to this layer."""
        yield from prefixed(self.names.attention, self.attention.weights())
        yield from prefixed(self.names.mlp, self.mlp.weights())
        yield from prefixed(self.names.input_norm, self.input_norm.weights())

    def forward(self, stream: Residual, inp: ForwardInput, kv: LayerKV) -> None:
        """Add both branches to the stream."""
        x = stream.normed(self.input_norm)
        stream.keep(inp)
        self.attention.forward_into(x, inp, stream, kv)
        self.mlp.forward_into(inp.keep(x), inp, stream, kv)


class PostNormLayer:
    """Attention, then feed-forward, each normalised before it is added.

    Where ``input_norm`` and ``pre_mlp_norm`` are given, what the parts read is normalised as well: the
    sandwich of Gemma 2 (arXiv:2408.00118). Else they read the stream as it is, as in OLMo 2
    (arXiv:2501.00656).
    """

    __slots__ = (
        "attention",
        "input_norm",
        "mlp",
        "names",
        "post_attention_norm",
        "post_mlp_norm",
        "pre_mlp_norm",
    )

    def __init__(
        self,
        names: Names,
        attention: Part,
        mlp: Part,
        post_attention_norm: Norm,
        post_mlp_norm: Norm,
        *,
        input_norm: Norm | None = None,
        pre_mlp_norm: Norm | None = None,
    ) -> None:
        self.names = names
        self.attention = attention
        self.mlp = mlp
        self.post_attention_norm = post_attention_norm
        self.post_mlp_norm = post_mlp_norm
        self.input_norm = input_norm
        self.pre_mlp_norm = pre_mlp_norm

    def weights(self) -> NamedSlots:
        """Checkpoint names, relative to this layer."""
        names = self.names
        yield from prefixed(names.attention, self.attention.weights())
        yield from prefixed(names.mlp, self.mlp.weights())
        yield from prefixed(names.post_attention_norm, self.post_attention_norm.weights())
        yield from prefixed(names.post_mlp_norm, self.post_mlp_norm.weights())
        if self.input_norm is not None:
            yield from prefixed(names.input_norm, self.input_norm.weights())
        if self.pre_mlp_norm is not None:
            yield from prefixed(names.pre_mlp_norm, self.pre_mlp_norm.weights())

    def forward(self, stream: Residual, inp: ForwardInput, kv: LayerKV) -> None:
        """Add both branches to the stream."""
        x = stream.promised(self.input_norm)
        stream.keep(inp)
        stream.add(self.post_attention_norm.forward(self.attention.forward(x, inp, kv)))
        x = stream.promised(self.pre_mlp_norm)
        stream.add(self.post_mlp_norm.forward(self.mlp.forward(x, inp, kv)))
