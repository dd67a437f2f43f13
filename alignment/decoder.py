"""What a decoder computes, read off the class that the engine runs for it.

The layers of that class say what is normalised, multiplied and scored how, and what checkpoints call the
weights; a transformers module has parameters of these names. So there is one description of a family, and
whatever an engine would compute differently is different here too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from ..errors import ModelError
from ..kernels.scoring import Scoring
from ..models.config import ModelConfig
from ..models.layers.attention import Attention
from ..models.layers.decoder import CausalLM
from ..models.layers.embedding import Embedding, TiedEmbedding
from ..models.layers.head import Head
from ..models.layers.layers import PreNormLayer
from ..models.layers.linear import Linear
from ..models.layers.matrices import FloatMatrix
from ..models.layers.mlp import GatedMLP
from ..models.layers.names import dotted
from ..models.layers.norm import RMSNorm
from ..models.layers.rotary import RotaryTable
from ..models.layers.slots import NamedSlots
from ..models.registry import resolve
from .attention import Heads


class LinearNames(NamedTuple):
    """Parameters of one product, in the order of its rows."""

    weights: tuple[str, ...]
    biases: tuple[str, ...]


class NormNames(NamedTuple):
    """One RMS norm."""

    weight: str
    eps: float
    offset: float


@dataclass(frozen=True)
class Layer:
    """Attention, then feed-forward, each on the normalised stream."""

    input_norm: NormNames
    qkv: LinearNames
    scoring: Scoring
    output: LinearNames
    post_attention_norm: NormNames
    gate_up: LinearNames
    activation: str
    down: LinearNames


@dataclass(frozen=True)
class Decoder:
    """A decoder with a head, its parameters by name; ``shapes`` are those of all of them.

    ``tied``: a name that may stand for another's parameter, and that other.
    """

    dtype: torch.dtype
    device: torch.device
    heads: Heads
    rotary: RotaryTable
    context_length: int
    vocab_size: int
    body: str
    embedding: str
    layers: tuple[Layer, ...]
    norm: NormNames
    head: LinearNames
    shapes: Mapping[str, tuple[int, ...]]
    tied: Mapping[str, str]


def describe(
    architecture: str,
    raw_config: Mapping[str, Any],
    dtype: torch.dtype,
    device: torch.device,
    context_length: int | None = None,
) -> Decoder:
    """What an engine of that dtype computes for a config of transformers.

    Raises ModelError for an architecture that the engine does not have, or without gradients here.
    """
    config = ModelConfig.from_dict({**raw_config, "architectures": [architecture]})
    family, _ = resolve([architecture])
    _expect(issubclass(family, CausalLM) and family.forward is CausalLM.forward, architecture, family)
    model = family(config, dtype, device)
    context_length = context_length or config.context_length
    model.set_context_length(context_length)
    _expect(type(model.embedding) in (Embedding, TiedEmbedding), architecture, model.embedding)
    head = model.head
    _expect(type(head) is Head and head.scale == 1.0 and head.soft_cap is None, architecture, head)
    assert head is not None
    names = model.names
    embedding = dotted(dotted(names.body, names.embedding), "weight")
    tied = type(model.embedding) is TiedEmbedding
    head_names = _linear(architecture, "", head.linear)
    return Decoder(
        dtype=dtype,
        device=device,
        heads=Heads(config.num_heads, config.num_kv_heads, config.head_dim),
        rotary=model.rotary,
        context_length=context_length,
        vocab_size=config.vocab_size,
        body=names.body,
        embedding=embedding,
        layers=tuple(
            _layer(architecture, dotted(names.body, names.layer.format(index)), layer)
            for index, layer in enumerate(model.layers)
        ),
        norm=_norm(architecture, dotted(names.body, names.final_norm), model.norm),
        head=LinearNames((embedding,), head_names.biases) if tied else head_names,
        shapes=model.weight_shapes,
        tied=dict.fromkeys(head_names.weights, embedding) if tied else {},
    )


def _layer(architecture: str, prefix: str, layer: Any) -> Layer:
    _expect(type(layer) is PreNormLayer, architecture, layer)
    attention, mlp, names = layer.attention, layer.mlp, layer.names
    _expect(type(attention) is Attention, architecture, attention)
    _expect(type(mlp) is GatedMLP, architecture, mlp)
    if not attention.scoring.asks <= {"window"}:
        raise ModelError(
            f"align: the attention of {architecture} has {', '.join(sorted(attention.scoring.asks))}; of"
            " these only a window has gradients here."
        )
    in_attention, in_mlp = dotted(prefix, names.attention), dotted(prefix, names.mlp)
    return Layer(
        input_norm=_norm(architecture, dotted(prefix, names.input_norm), layer.input_norm),
        qkv=_linear(architecture, in_attention, attention.qkv),
        scoring=attention.scoring,
        output=_linear(architecture, in_attention, attention.output),
        post_attention_norm=_norm(
            architecture, dotted(prefix, names.post_attention_norm), layer.post_attention_norm
        ),
        gate_up=_linear(architecture, in_mlp, mlp.gate_up),
        activation=mlp.activation,
        down=_linear(architecture, in_mlp, mlp.down),
    )


def _norm(architecture: str, prefix: str, norm: Any) -> NormNames:
    _expect(type(norm) is RMSNorm, architecture, norm)
    [(name, _)] = norm.weights()
    return NormNames(dotted(prefix, name), norm.eps, norm.offset)


def _linear(architecture: str, prefix: str, linear: Any) -> LinearNames:
    plain = type(linear) is Linear and [type(segment) for segment in linear.segments] == [FloatMatrix]
    _expect(plain, architecture, linear)
    names = list(_full(prefix, linear.weights()))
    weights = tuple(name for name in names if name.endswith(".weight"))
    return LinearNames(weights, tuple(name for name in names if name.endswith(".bias")))


def _full(prefix: str, slots: NamedSlots) -> Iterator[str]:
    for name, _ in slots:
        yield dotted(prefix, name)


def _expect(fits: bool, architecture: str, found: object) -> None:
    if not fits:
        name = found.__name__ if isinstance(found, type) else type(found).__name__
        raise ModelError(
            f"align: {architecture} has a part whose gradients are not known here, {name}. Known are decoders"
            " whose layers are PreNormLayer of Attention, GatedMLP and RMSNorm with weights of floats, as"
            " those of Llama, Mistral and Qwen2 are."
        )
