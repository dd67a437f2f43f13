"""Reading a model's ``config.json`` strictly: every field has a type and a default, or is required.

:class:`ModelConfig` holds what every decoder has. What only some families have (biases, windows,
activation) is read by the family with :meth:`ModelConfig.read`, under the same rules, so that a new
family brings its own fields with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch

from ..errors import ModelError
from .fields import REQUIRED, matches, read_field, shorten
from .quantization.registry import check_quantization
from .registry import default_architecture
from .rope_fields import DEFAULT_CONTEXT_LENGTH, MAX_POSITIONS, derive_context_length

_DTYPES: Final = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

# Spellings of the same universal field, as different families save it.
_HIDDEN_SIZE = ("hidden_size", "n_embd", "d_model")
_NUM_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_MAX_LAYERS = 10_000  # layers are built before their weights are looked for; real models have hundreds
_NUM_HEADS = ("num_attention_heads", "n_head", "n_heads")


@dataclass(frozen=True)
class ModelConfig:
    """The part of ``config.json`` that every decoder-only model has, checked; the rest is in ``raw``."""

    architectures: tuple[str, ...]
    model_type: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int  # as the file says, before any rope scaling
    context_length: int  # longest sequence the model is meant for, in tokens
    dtype: torch.dtype | None  # of the checkpoint, where the file says
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    pad_token_id: int | None
    raw: Mapping[str, Any] = field(repr=False, compare=False)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> ModelConfig:
        """Read a parsed ``config.json`` (overrides already merged); ModelError names a bad field."""
        check_quantization(raw)
        hidden_size = read_field(raw, _HIDDEN_SIZE, int, minimum=1)
        num_heads = read_field(raw, _NUM_HEADS, int, minimum=1)
        return cls(
            architectures=read_architectures(raw),
            model_type=read_field(raw, "model_type", str, ""),
            vocab_size=read_field(raw, "vocab_size", int, minimum=1),
            hidden_size=hidden_size,
            num_layers=read_field(raw, _NUM_LAYERS, int, minimum=1, maximum=_MAX_LAYERS),
            num_heads=num_heads,
            num_kv_heads=_read_num_kv_heads(raw, num_heads),
            head_dim=_read_head_dim(raw, hidden_size, num_heads),
            max_position_embeddings=read_field(raw, MAX_POSITIONS, int, DEFAULT_CONTEXT_LENGTH, minimum=1),
            context_length=derive_context_length(raw),
            dtype=_read_dtype(raw),
            eos_token_ids=read_token_ids(raw, "eos_token_id"),
            bos_token_id=next(iter(read_token_ids(raw, "bos_token_id")), None),
            pad_token_id=next(iter(read_token_ids(raw, "pad_token_id")), None),
            raw=raw,
        )

    def read(self, names: str | tuple[str, ...], kind: Any, default: Any = REQUIRED, **checks: Any) -> Any:
        """Read one more field of the file; arguments and errors as in :func:`read_field`."""
        return read_field(self.raw, names, kind, default, **checks)


def read_architectures(raw: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the model's architecture, most specific first.

    A file without them is of its ``model_type``, as in transformers. Raises ModelError if there is neither.
    """
    names = read_field(raw, "architectures", list[str], None, null=True)
    if names:
        return tuple(names)
    model_type = read_field(raw, "model_type", str, None, null=True)
    if model_type is None:
        read_field(raw, "architectures", list[str], REQUIRED)
        raise ModelError("config.json: field 'architectures' is empty, and there is no model_type.")
    return (default_architecture(model_type),)


def _read_num_kv_heads(raw: Mapping[str, Any], num_heads: int) -> int:
    """Number of K/V heads; without the field every query head has its own."""
    value = read_field(raw, "num_key_value_heads", int, None, null=True, minimum=1)
    num_kv_heads = num_heads if value is None else value
    if num_heads % num_kv_heads:
        raise ModelError(
            f"config.json: num_attention_heads ({num_heads}) must be a multiple of "
            f"num_key_value_heads ({num_kv_heads})."
        )
    return num_kv_heads


def _read_head_dim(raw: Mapping[str, Any], hidden_size: int, num_heads: int) -> int:
    """Size of one head: given, or the hidden size divided among the query heads."""
    value = read_field(raw, "head_dim", int, None, null=True, minimum=1)
    if value is not None:
        return value
    if hidden_size % num_heads:
        raise ModelError(
            f"config.json: hidden_size ({hidden_size}) must be a multiple of num_attention_heads "
            f"({num_heads}) when head_dim is not given."
        )
    return hidden_size // num_heads


def _read_dtype(raw: Mapping[str, Any]) -> torch.dtype | None:
    """The checkpoint's dtype: ``dtype`` (transformers 5) or ``torch_dtype`` (transformers 4)."""
    name = read_field(raw, ("dtype", "torch_dtype"), str, None, null=True)
    if name in (None, "auto"):
        return None
    name = name.removeprefix("torch.")
    if name not in _DTYPES:
        raise ModelError(f"config.json: dtype = {name!r} is not supported. Supported: {', '.join(_DTYPES)}.")
    return _DTYPES[name]


def read_token_ids(raw: Mapping[str, Any], name: str, section: str = "config.json") -> tuple[int, ...]:
    """A token id, a list of them or null, as a tuple; negative ids (some files say -1) mean none."""
    value = raw.get(name)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not matches(ids, list[int]):
        raise ModelError(
            f"{section}: field {name!r} must be an integer, a list of integers or null, got {shorten(value)}."
        )
    return tuple(token for token in ids if token >= 0)
