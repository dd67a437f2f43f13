"""The decoder stack that families share, and the model interface they implement with it.

A family is a subclass of :class:`CausalLM` that lists the parts of a layer in :meth:`CausalLM.layer`, made by
a :class:`~rootlet.models.layers.make.Make`, and says what else is unlike the usual: names, last norm, head.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...cache.kv_cache import KVCache
from ...cache.kv_spec import KVCacheSpec, KVGroup
from ..config import ModelConfig
from ..forward import ForwardInput
from ..interface import Output
from ..quantization.registry import read_scheme
from .embedding import InputEmbedding
from .head import Head
from .make import Make
from .matrices import DENSE
from .names import USUAL_NAMES, dotted
from .offload import offload
from .part import Layer
from .residual import Norm, Residual
from .rope_config import RopeConfig
from .rotary import RotaryTable
from .slots import NamedSlots, prefixed
from .weight_table import WeightTable
from .weight_update import TensorSpec, UpdatePlan


class CausalLM(ABC):
    """A decoder-only model: embedding, layers, final norm, and what :attr:`output` asks for.

    Built without weights; :meth:`load_weights` creates them. ``dtype`` is that of weights and
    activations, ``output`` stands in for that of the class. Raises ModelError where the configuration asks
    for something unsupported.
    """

    output = Output.LOGITS
    """What stands behind the last norm, unless it is given: classifiers and bare models are of one class."""

    names = USUAL_NAMES
    """What the family's checkpoints call their tensors."""

    ignored_weights: tuple[str, ...] = ()
    """Endings of checkpoint names that this family leaves aside, besides the usual ones."""

    tie_word_embeddings = False
    """Whether the head shares the embedding table when the configuration does not say."""

    token_columns: Sequence[Any] = ()
    """What it reads per token besides ids and positions: each a ``TokenColumn``, found in ``inp.columns``."""

    multiplies_in_kernels = True
    """Its parts have no products but those of :class:`Linear`."""

    def __init__(
        self,
        config: ModelConfig,
        dtype: torch.dtype,
        device: torch.device | str,
        output: Output | None = None,
    ) -> None:
        self.config = config
        self.dtype = dtype
        self.device = torch.device(device)
        self.output = self.output if output is None else output
        self.rotary = RotaryTable(RopeConfig.from_model(config), config.context_length, self.device)
        names = self.names
        top = Make(config, dtype, self.device, names, read_scheme(config.raw) or DENSE)
        body = top.at("" if self.output is Output.STATES else names.body)
        self.layers: list[Layer] = [
            self.layer(index, body.at(names.layer.format(index))) for index in range(config.num_layers)
        ]
        self.norm = self.final_norm(body.at(names.final_norm))
        self.head = self.output_head(top)
        is_tied = config.read("tie_word_embeddings", bool, self.tie_word_embeddings)
        self._tied_head = self.head if is_tied and self.output is Output.LOGITS else None
        self.embedding = self.input_embedding(body.at(names.embedding), self._tied_head)
        table = dotted(dotted(body.prefix, names.embedding), "weight")
        ties = {} if self._tied_head is None else {dotted(names.head, "weight"): table}
        self._matrices = top.matrices
        self._weights = WeightTable(self._named_weights(body.prefix), ties, self.ignored_weights, names)

    # what a family says

    @abstractmethod
    def layer(self, index: int, make: Make) -> Layer:
        """Layer ``index``: its parts, and how they stand along the residual stream."""

    def final_norm(self, make: Make) -> Norm:
        """The norm behind the last layer."""
        return make.rms_norm()

    def output_head(self, make: Make) -> Head | None:
        """What turns hidden states into logits or scores; None where there are only states."""
        if self.output is Output.STATES:
            return None
        if self.output is Output.SCORES:
            return make.head({self.names.scores: num_labels(self.config)})
        return make.head({self.names.head: self.config.vocab_size})

    def input_embedding(self, make: Make, tied: Head | None) -> InputEmbedding:
        """What the residual stream begins with; ``tied`` is the head whose rows it shares."""
        return make.embedding(tied)

    def kv_groups(self) -> tuple[KVGroup, ...]:
        """What layers keep of each token, and which of them the same. Default: keys and values, all alike."""
        config = self.config
        group = KVGroup.paged(
            range(config.num_layers),
            num_q_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            dtype=self.dtype,
        )
        return (group,)

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
        """Logits of hidden states ``[R, H]`` -> ``[R, V]`` fp32; scores ``[R, labels]`` of a classifier."""
        if self.head is None:
            raise AssertionError("A model without a head has states only.")
        return self.head.forward(hidden)

    def check_embeddings(self) -> None:  # noqa: B027
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
        """What the layers keep of each token, in pages of ``page_size`` tokens."""
        return KVCacheSpec(self.kv_groups(), page_size)

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

    def place_weights(self, allocate: Callable[[int], Tensor]) -> None:
        """Keep all weights in ``allocate(bytes)``, uint8 of a GPU; once, before a load, nothing offloaded."""
        self._weights.move(allocate)

    def weight_tensors(self) -> list[Tensor]:
        """What the weights lie in, in the layouts of their kernels; each tensor once."""
        return self._weights.tensors

    def load_weights(self, named: Iterable[tuple[str, Tensor]]) -> None:
        """Load a checkpoint from (Hugging Face name, tensor) pairs, in any order, one at a time.

        Memory in use stays within the packed model plus the tensor at hand. Loading again copies
        into the same memory; no pass may be under way then. Raises WeightsError naming every missing,
        leftover, duplicate or misshapen tensor at once. With tied embeddings ``lm_head.weight`` may be
        absent; if present, ``model.embed_tokens.weight`` goes before it.
        """
        self._weights.load(named)

    def plan_update(
        self, specs: Mapping[str, TensorSpec], *, partial: bool, translate: bool = False
    ) -> UpdatePlan:
        """Where new values of weights go, all of them or with ``partial`` some. Raises WeightsError.

        ``translate``: names may be those of a checkpoint of the bare or wrapped model.
        """
        return self._weights.plan_update(specs, partial=partial, translate=translate)

    def use_batch_invariant_kernels(self) -> None:
        """Multiply with kernels whose result for a row depends, to the last bit, on that row alone.

        Call before the weights are loaded. Raises ConfigError where a format of weights has no such kernel.
        """
        for matrix in self._matrices:
            matrix.use_batch_invariant_kernels()

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
    def weight_dtypes(self) -> dict[str, torch.dtype]:
        """Name and type of each of them, as it is kept; a float may come as any float."""
        return self._weights.dtypes

    @property
    def weight_nbytes(self) -> int:
        """Bytes that the weights hold, offloaded ones too; a table used twice counts once."""
        return self._weights.nbytes

    def _named_weights(self, body: str) -> NamedSlots:
        """All slots by Hugging Face name."""
        names = self.names
        yield from prefixed(dotted(body, names.embedding), self.embedding.weights())
        for index, layer in enumerate(self.layers):
            yield from prefixed(dotted(body, names.layer.format(index)), layer.weights())
        yield from prefixed(dotted(body, names.final_norm), self.norm.weights())
        if self.head is not None and self._tied_head is None:
            yield from self.head.weights()


def num_labels(config: ModelConfig) -> int:
    """Labels of a classifier: names in ``id2label``, else ``num_labels``, else 2 as in transformers."""
    names = config.read("id2label", dict, None, null=True)
    return len(names) if names else config.read("num_labels", int, 2, minimum=1)
