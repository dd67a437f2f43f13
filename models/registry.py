"""Which class runs which architecture name of ``config.json``."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from ..errors import ConfigError, ModelError
from .fields import shorten
from .interface import REQUIRED, Output

# Class name of a family -> module of this package that has it. A family is imported when a model of it is
# loaded; a new one adds its line here and its own file. Its classifiers and bare models come with it.
_FAMILIES: Final = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
}

# Ending of an architecture's name -> what stands behind the last norm.
_OUTPUTS: Final = {
    "ForCausalLM": Output.LOGITS,
    "ForSequenceClassification": Output.SCORES,
    "Model": Output.STATES,
}

_BUILT_IN: Final = {
    family.removesuffix("ForCausalLM") + ending: (family, output)
    for family in _FAMILIES
    for ending, output in _OUTPUTS.items()
} | {"LlamaEmbeddingModel": ("LlamaForCausalLM", Output.STATES)}  # the documented system's name


class Architecture(NamedTuple):
    """What runs a name of ``config.json``."""

    family: type[Any]
    output: Output | None  # None: as the class says


_registered: dict[str, type] = {}


def register_model(name: str, cls: type, *, replace: bool = False) -> None:
    """Make ``cls`` the model class of the architecture ``name``, for every engine built from now on.

    ``cls(config, dtype, device)`` must give a :class:`~rootlet.models.interface.RequiredModel`, and may
    have more of a :class:`~rootlet.models.interface.Model`. Raises ConfigError if a required method is
    missing, or if the name is taken and ``replace`` is false.
    """
    absent = [method for method in REQUIRED if not callable(getattr(cls, method, None))]
    if not isinstance(cls, type) or absent:
        raise ConfigError(
            f"register_model({name!r}) needs a model class, got {cls!r}"
            + (f" without {', '.join(absent)}." if absent else ".")
        )
    if not replace and (name in _registered or name in _BUILT_IN):
        raise ConfigError(f"The architecture {name!r} is already registered; replace=True replaces it.")
    _registered[name] = cls


def supported_architectures() -> list[str]:
    """All architecture names that :func:`resolve` knows, sorted."""
    return sorted(_BUILT_IN.keys() | _registered.keys())


def default_architecture(model_type: str) -> str:
    """The causal language model of a ``model_type`` of transformers.

    Raises ModelError listing the supported names if there is none.
    """
    for name, module in _FAMILIES.items():
        if module == model_type:
            return name
    known = sorted(_FAMILIES.values())
    raise ModelError(
        f"config.json names no architectures, and its model_type {shorten(model_type)} is not supported."
        f"{_suggest(model_type, known)} Supported: {', '.join(known)}; or add your own with"
        " rootlet.register_model(name, cls) and name it in architectures."
    )


def resolve(architectures: Sequence[str]) -> Architecture:
    """Return what runs the first supported name in ``architectures``.

    Raises ModelError listing the supported names if there is none.
    """
    for name in architectures:
        if name in _registered:
            return Architecture(_registered[name], None)
        if name in _BUILT_IN:
            family, output = _BUILT_IN[name]
            module = importlib.import_module(f".{_FAMILIES[family]}", __package__)
            return Architecture(getattr(module, family), output)
    known = supported_architectures()
    raise ModelError(
        f"Model architectures {shorten(list(architectures))} are not supported."
        f"{_suggest(architectures[0] if architectures else '', known)} Supported: {', '.join(known)}. "
        "Add your own with rootlet.register_model(name, cls)."
    )


def _suggest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name[:100], known, n=1, cutoff=0.8)
    return f" Did you mean {close[0]!r}?" if close else ""
