"""The decoder stack that families share, and the model interface they implement with it.

A family is a subclass of :class:`CausalLM` that says in :meth:`CausalLM.layer_spec` how its layers
differ. A family with parts of another kind overrides the method that builds the part
(``build_attention``, ``build_mlp``, ``build_norm``, ``build_layer``): a part is any object with
``weights()`` and the ``forward`` of the one it replaces.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...cache.kv_cache import KVCache, KVCacheSpec
from ..config import ModelConfig
from ..forward import ForwardInput
from ..interface import Output
from .attention import Attention
from .embedding import Embedding, TiedEmbedding
from .head import Head
from .layers import PreNormLayer
from .linear import Linear
from .mlp import GatedMLP
from .norm import RMSNorm
from .offload import offload
from .part import Layer
from .residual import Residual
from .rope_config import RopeConfig
from .rotary import RotaryTable
from .storage import NamedSlots, prefixed
from .weight_table import WeightTable


@dataclass(frozen=True)
class LayerSpec:
    """How one decoder layer differs from the plain one."""

    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    window: int | None = None  # positions a token sees, itself included; None: all
    attention_scale: float | None = None  # None: 1 / sqrt(head_dim)
    soft_cap: float | None = None  # bound of the attention scores


class CausalLM:
    """A decoder-only model: embedding, layers, final norm, and what :attr:`output` asks for.

    Built without weights; :meth:`load_weights` creates them. ``dtype`` is that of weights and
    activations. Raises ModelError where the configuration asks for something unsupported.
    """

    output = Output.LOGITS
    """What stands behind the last norm. A family's classifier and bare model say so and nothing else."""

    ignored_weights: tuple[str, ...] = ()
    """Endings of checkpoint names that this family leaves aside, besides the usual ones."""

    tie_word_embeddings = False
    """Whether the head shares the embedding table when the configuration does not say."""

    multiplies_in_kernels = True
    """Its parts have no products but those of :class:`Linear`."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device | str) -> None:
        self.config = config
        self.dtype = dtype
        self.device = torch.device(device)
        self.rotary = RotaryTable(RopeConfig.from_model(config), config.context_length, self.device)
        self.layers: list[Layer] = [self.build_layer(index) for index in range(config.num_layers)]
        self.norm = self.build_norm()
        tied = config.read("tie_word_embeddings", bool, self.tie_word_embeddings)
        tied = tied and self.output is Output.LOGITS
        self.head = self.build_head()
        self.embedding = (
            TiedEmbedding(self.head.linear)
            if tied
            else Embedding(config.vocab_size, config.hidden_size, dtype, self.device)
        )
        ties = {"lm_head.weight": "model.embed_tokens.weight"} if tied else {}
        self._weights = WeightTable(self._named_weights(tied), ties, self.ignored_weights)

    # what a family says

    def layer_spec(self, index: int) -> LayerSpec:  # noqa: ARG002
        """How layer ``index`` differs from the plain one."""
        return LayerSpec()

    def build_norm(self) -> RMSNorm:
        """One norm over the hidden size."""
        config = self.config
        eps = config.read("rms_norm_eps", float, 1e-6, minimum=0)
        return RMSNorm(config.hidden_size, eps, self.dtype, self.device)

    def build_head(self) -> Head | None:
        """What turns hidden states into logits or scores."""
        if self.output is Output.STATES:
            return None
        rows = {"lm_head": self.config.vocab_size}
        if self.output is Output.SCORES:
            rows = {"score": num_labels(self.config)}
        return Head(Linear(self.config.hidden_size, rows, dtype=self.dtype, device=self.device))

    def build_attention(self, spec: LayerSpec) -> Attention:
        """The attention of one layer."""
        return Attention(
            self.config,
            self.rotary,
            qkv_bias=spec.qkv_bias,
            output_bias=spec.output_bias,
            window=spec.window,
            scale=spec.attention_scale,
            soft_cap=spec.soft_cap,
            dtype=self.dtype,
            device=self.device,
        )

    def build_mlp(self, spec: LayerSpec) -> GatedMLP:
        """The feed-forward block of one layer."""
        config = self.config
        size = config.read("intermediate_size", int, minimum=1)
        activation = config.read("hidden_act", str, "silu")
        return GatedMLP(
            config.hidden_size, size, activation, bias=spec.mlp_bias, dtype=self.dtype, device=self.device
        )

    def build_layer(self, index: int) -> Layer:
        """One decoder layer."""
        spec = self.layer_spec(index)
        return PreNormLayer(
            self.build_attention(spec), self.build_mlp(spec), self.build_norm(), self.build_norm()
        )

    # what the engine uses

    def forward(self, inp: ForwardInput, kv: KVCache) -> Tensor:
        """Run the T tokens of a step and write their K/V to ``kv``; return hidden states ``[T, H]``.

        The hidden states are those after the final norm, ``[S, H]`` where only S tokens are wanted.
        """
        stream = Residual(self.embedding.forward(inp))
        inner = inp if inp.wanted is None else replace(inp, wanted=None)
        for index, (layer, layer_kv) in enumerate(zip(self.layers, kv.layers, strict=True), start=1):
            layer.forward(stream, inp if index == len(self.layers) else inner, layer_kv)
        return stream.normed(self.norm)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """Logits of hidden states ``[R, H]`` -> ``[R, V]`` fp32."""
        return self.head.forward(hidden)

    def check_embeddings(self) -> None:
        """There always are: the states themselves, of length 1."""

    def compute_embeddings(self, hidden: Tensor) -> Tensor:
        """What a whole text means to the model, from the states ``[R, H]`` of its last token; fp32.

        Scores ``[R, labels]`` of a classifier; else the states themselves ``[R, H]``, of length 1.
        """
        if self.output is Output.SCORES:
            return self.compute_logits(hidden)
        return torch.nn.functional.normalize(hidden.float(), dim=-1)

    @property
    def hidden_size(self) -> int:
        """H, the width of hidden states."""
        return self.config.hidden_size

    def kv_spec(self, page_size: int) -> KVCacheSpec:
        """Shape of the KV cache this model needs, in pages of ``page_size`` tokens."""
        config = self.config
        return KVCacheSpec(config.num_layers, config.num_kv_heads, config.head_dim, self.dtype, page_size)

    def set_context_length(self, num_tokens: int) -> None:
        """Serve sequences of at most ``num_tokens`` (default: ``config.context_length``)."""
        self.rotary.resize(num_tokens)

    # weights

    def offload_layers(self, num_bytes: int) -> None:
        """Keep layers in host memory until ``num_bytes`` of weights have moved there; once, before a load.

        Results stay the same to the bit. Passes must then run one after the other. Raises ConfigError if the
        host has no room.
        """
        self.layers = offload(self.layers, num_bytes, self.device)

    def load_weights(self, named: Iterable[tuple[str, Tensor]]) -> None:
        """Load a checkpoint from (Hugging Face name, tensor) pairs, in any order, one at a time.

        Memory in use stays within the packed model plus the tensor at hand. Loading again copies
        into the same memory; no pass may be under way then. Raises WeightsError naming every missing,
        leftover, duplicate or misshapen tensor at once. With tied embeddings ``lm_head.weight`` may be
        absent; if present, ``model.embed_tokens.weight`` goes before it.
        """
        self._weights.load(named)

    def use_batch_invariant_kernels(self) -> None:
        """Multiply with kernels whose result for a row depends, to the last bit, on that row alone.

        Call before the weights are loaded.
        """
        self._weights.use_batch_invariant_kernels()

    def get_weight(self, name: str) -> Tensor | None:
        """The weight of a Hugging Face name, unmerged and unpacked; None if there is none.

        It may share memory with the model: do not write to it. That of an offloaded layer is in host memory.
        """
        return self._weights.get(name)

    @property
    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor that :meth:`load_weights` expects."""
        return self._weights.shapes

    @property
    def weight_nbytes(self) -> int:
        """Bytes that the weights hold, offloaded ones too; a table used twice counts once."""
        return self._weights.nbytes

    def _named_weights(self, tied: bool) -> NamedSlots:
        """All slots by Hugging Face name; a bare model is saved without the prefix."""
        body = "" if self.output is Output.STATES else "model."
        yield from prefixed(f"{body}embed_tokens.", self.embedding.weights())
        for index, layer in enumerate(self.layers):
            yield from prefixed(f"{body}layers.{index}.", layer.weights())
        yield from prefixed(f"{body}norm.", self.norm.weights())
        if self.head is not None and not tied:
            yield from self.head.weights()


def num_labels(config: ModelConfig) -> int:
    """Labels of a classifier: names in ``id2label``, else ``num_labels``, else 2 as in transformers."""
    names = config.read("id2label", dict, None, null=True)
    return len(names) if names else config.read("num_labels", int, 2, minimum=1)
