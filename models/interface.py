"""What the engine uses of a model: what a class must have, what it may have, and what stands in otherwise.

A class given to :func:`rootlet.register_model` needs the methods of :class:`RequiredModel` and no base class.
The engine only ever holds a :class:`Model`: :func:`complete` gives a model the rest, whose defaults and
refusals are all here.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from ..errors import ConfigError, ModelError, WeightsError

if TYPE_CHECKING:  # `rootlet.register_model` needs no torch
    import torch

    from ..cache.kv_cache import KVCache
    from ..cache.kv_spec import KVCacheSpec
    from .forward import ForwardInput
    from .layers.weight_update import TensorSpec


class Output(enum.Enum):
    """What a model computes of the last hidden states."""

    LOGITS = "logits"  # of every token of the vocabulary, to generate from
    SCORES = "scores"  # of each label: classifiers, and reward models, which have one
    STATES = "states"  # nothing more: embedding models, saved without a head


REQUIRED: Final = (
    "forward",
    "compute_logits",
    "load_weights",
    "get_weight",
    "kv_spec",
    "set_context_length",
)
"""The methods of :class:`RequiredModel`, by which a class is checked when it is registered."""


class WeightPlan(Protocol):
    """Where checked tensors of an update go."""

    @property
    def names(self) -> Collection[str]:
        """Of the tensors that are wanted; others are left aside."""

    @property
    def filled(self) -> Collection[str]:
        """The names in ``weight_shapes`` that have new values then."""

    def dtype(self, name: str) -> torch.dtype:
        """The type that a tensor's values are kept in."""

    def view(self, name: str) -> torch.Tensor | None:
        """The memory of a wanted tensor in the checkpoint's layout; None where it is kept in another."""

    def check_ties(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Raise WeightsError if names that are the same weight bring different values."""

    def write(self, named: Iterable[tuple[str, torch.Tensor]]) -> int:
        """Copy the tensors to where they stay; the bytes written."""


class RequiredModel(Protocol):
    """The least that a model is."""

    def forward(self, inp: ForwardInput, kv: KVCache) -> torch.Tensor:
        """Run the T tokens of a step, write their K and V to ``kv``; states ``[T, H]`` after the final norm.

        Where only S tokens are wanted (``inp.wanted``) theirs ``[S, H]`` are enough.
        """

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits ``[R, V]`` fp32 of states ``[R, H]``."""

    def load_weights(self, named: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Take a checkpoint's tensors by name, in any order, one at a time. Raises WeightsError."""

    def get_weight(self, name: str) -> torch.Tensor | None:
        """The weight of a checkpoint name; None if there is none."""

    def kv_spec(self, page_size: int) -> KVCacheSpec:
        """The KV cache this model needs, in pages of ``page_size`` tokens."""

    def set_context_length(self, num_tokens: int) -> None:
        """Serve sequences of at most ``num_tokens`` from now on."""


class Model(RequiredModel, Protocol):
    """All that the engine uses of a model. What :class:`RequiredModel` leaves out is optional for a class."""

    @property
    def output(self) -> Output:
        """What stands behind the last norm. Default: logits."""

    @property
    def dtype(self) -> torch.dtype:
        """Type of weights and activations. Default: the one it was built with."""

    @property
    def hidden_size(self) -> int:
        """H. Default: that of its configuration."""

    @property
    def multiplies_in_kernels(self) -> bool:
        """Whether all its products are those of ``kernels/matrices/``, so that torch needs no threads. No."""

    @property
    def token_columns(self) -> Sequence[Any]:
        """What it reads per token besides ids and positions: each a ``TokenColumn`` of the engine's steps."""

    @property
    def weight_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Name and shape of every tensor of a checkpoint. ModelError where a class does not tell."""

    @property
    def weight_dtypes(self) -> Mapping[str, torch.dtype]:
        """The types of those that are not of the model's dtype, and perhaps of others. Default: none."""

    def plan_update(
        self, specs: Mapping[str, TensorSpec], *, partial: bool, translate: bool = False
    ) -> WeightPlan:
        """Where new values go, of all weights or with ``partial`` of some. Raises WeightsError.

        ``translate``: names may be those that ``load_weights`` translates. Nothing is changed by it. Default:
        ``load_weights`` takes them, all at once.
        """

    def check_embeddings(self) -> None:
        """Raise ConfigError unless there are embeddings or scores to compute."""

    def compute_embeddings(self, hidden: torch.Tensor) -> torch.Tensor:
        """Embeddings or scores ``[R, D]`` fp32 from states ``[R, H]`` of last tokens. Default: refused."""

    def use_batch_invariant_kernels(self) -> None:
        """Let a row's result depend, to the last bit, on that row alone; before a load. Default: refused."""

    def offload_layers(self, num_bytes: int) -> None:
        """Keep so many bytes of layers in host memory; before a load. Default: refused."""

    def place_weights(self, allocate: Callable[[int], torch.Tensor]) -> None:
        """Keep all weights in ``allocate(bytes)``, uint8 of its device; before a load. Default: refused."""

    def weight_tensors(self) -> Sequence[torch.Tensor]:
        """The tensors that hold the weights, each once. Default: none, so none are given back on a CPU."""


_OPTIONAL: Final = tuple(name for name in vars(Model) if name[0] != "_")


def complete(model: RequiredModel, dtype: torch.dtype, hidden_size: int) -> Model:
    """``model``, built with that dtype and hidden size, and what it leaves out; itself if that is nothing."""
    if all(getattr(model, name, None) is not None for name in _OPTIONAL):
        return cast("Model", model)
    return CompletedModel(model, dtype, hidden_size)


class CompletedModel:
    """A model of a user's own class, and what the class leaves out."""

    def __init__(self, model: RequiredModel, dtype: torch.dtype, hidden_size: int) -> None:
        self._model = model
        self._name = type(model).__name__
        self.output: Output = getattr(model, "output", Output.LOGITS)
        self.dtype: torch.dtype = getattr(model, "dtype", dtype)
        self.hidden_size: int = getattr(model, "hidden_size", hidden_size)
        self.multiplies_in_kernels: bool = getattr(model, "multiplies_in_kernels", False)
        self.token_columns: Sequence[Any] = getattr(model, "token_columns", ())
        self.weight_dtypes: Mapping[str, torch.dtype] = getattr(model, "weight_dtypes", {})

    def forward(self, inp: ForwardInput, kv: KVCache) -> torch.Tensor:
        """That of the class."""
        return self._model.forward(inp, kv)

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """That of the class."""
        return self._model.compute_logits(hidden)

    def load_weights(self, named: Iterable[tuple[str, torch.Tensor]]) -> None:
        """That of the class."""
        self._model.load_weights(named)

    def get_weight(self, name: str) -> torch.Tensor | None:
        """That of the class."""
        return self._model.get_weight(name)

    def kv_spec(self, page_size: int) -> KVCacheSpec:
        """That of the class."""
        return self._model.kv_spec(page_size)

    def set_context_length(self, num_tokens: int) -> None:
        """That of the class."""
        self._model.set_context_length(num_tokens)

    @property
    def weight_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """What the class names. Raises ModelError if it does not."""
        shapes = getattr(self._model, "weight_shapes", None)
        if shapes is None:
            raise ModelError(
                f"load_format='dummy' needs {self._name}.weight_shapes, a dict of names and shapes."
            )
        return shapes

    def plan_update(
        self, specs: Mapping[str, TensorSpec], *, partial: bool, translate: bool = False
    ) -> WeightPlan:
        """As the class does it; else all are given to ``load_weights``."""
        own = getattr(self._model, "plan_update", None)
        if callable(own):
            return own(specs, partial=partial, translate=translate)
        if partial:
            raise WeightsError(
                f"An update of some weights needs a method plan_update, and {self._name} has none. Add it, or"
                " give all weights."
            )
        return _Loading(self, specs)

    def check_embeddings(self) -> None:
        """Raise ConfigError if the class has no embeddings."""
        self._embeddings()

    def compute_embeddings(self, hidden: torch.Tensor) -> torch.Tensor:
        """Those of the class. Raises ConfigError if it has none."""
        return self._embeddings()(hidden)

    def use_batch_invariant_kernels(self) -> None:
        """As the class does it. Raises ConfigError if it does not."""
        name = "use_batch_invariant_kernels"
        self._own(name, f"deterministic=True needs a method {name}; {self._name}")()

    def offload_layers(self, num_bytes: int) -> None:
        """As the class does it. Raises ConfigError if it does not."""
        needs = "a model class with a method offload_layers, as Rootlet's own have, and"
        self._own(
            "offload_layers",
            f"cpu_offload_gb={num_bytes / 2**30:g} needs {needs} {self._name}",
            " Add it, or leave the option out.",
        )(num_bytes)

    def place_weights(self, allocate: Callable[[int], torch.Tensor]) -> None:
        """As the class does it. Raises ConfigError if it does not."""
        need = f"enable_memory_saver=True needs a method place_weights, and {self._name}"
        self._own("place_weights", need, " Add it, or leave the option out.")(allocate)

    def weight_tensors(self) -> Sequence[torch.Tensor]:
        """Those that the class names, if it does."""
        named = getattr(self._model, "weight_tensors", tuple)
        return named()

    def _embeddings(self) -> Callable[[torch.Tensor], torch.Tensor]:
        need = f"is_embedding=True needs a method compute_embeddings, and {self._name}"
        return self._own("compute_embeddings", need)

    def _own(self, name: str, need: str, mend: str = "") -> Callable[..., Any]:
        """The class's method of that name. Raises ConfigError if there is none."""
        method = getattr(self._model, name, None)
        if not callable(method):
            raise ConfigError(f"{need} has none.{mend}")
        return method


class _Loading:
    """The plan of a class that only knows how to load: names are its business."""

    def __init__(self, model: CompletedModel, specs: Mapping[str, TensorSpec]) -> None:
        self._model = model
        self.names = self.filled = frozenset(specs)

    def dtype(self, name: str) -> torch.dtype:
        """What the class says, else the model's."""
        return self._model.weight_dtypes.get(name, self._model.dtype)

    def view(self, name: str) -> None:
        """Nobody knows where it lies."""

    def check_ties(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Nothing is known of any."""

    def write(self, named: Iterable[tuple[str, torch.Tensor]]) -> int:
        """One after the other."""
        written = 0

        def counted() -> Iterable[tuple[str, torch.Tensor]]:
            nonlocal written
            for name, tensor in named:
                yield name, tensor
                written += tensor.numel() * self.dtype(name).itemsize

        self._model.load_weights(counted())
        return written
