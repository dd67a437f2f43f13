"""Reading a model's ``config.json`` strictly: every field has a type and a default, or is required.

:class:`ModelConfig` holds what every decoder has. What only some families have (biases, windows,
activation) is read by the family with :meth:`ModelConfig.read`, under the same rules, so that a new
family brings its own fields with it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, get_args, get_origin

import torch

from ..errors import ModelError

REQUIRED: Final = object()
"""Default of a field that must be present."""

ROPE_SECTION: Final = "config.json: rope_scaling"
"""How messages name the rotary part of the file, in either of its forms."""

_DTYPES: Final = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

# Spellings of the same universal field, as different families save it.
_HIDDEN_SIZE = ("hidden_size", "n_embd", "d_model")
_NUM_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_NUM_HEADS = ("num_attention_heads", "n_head", "n_heads")
_MAX_POSITIONS = ("max_position_embeddings", "n_positions")
_CONTEXT_LENGTH = ("max_sequence_length", "seq_length", "max_seq_len", "model_max_length", *_MAX_POSITIONS)
_DEFAULT_CONTEXT_LENGTH = 2048
_ROPE_BASE = ("rope_theta", "partial_rotary_factor")


def read_field(
    raw: Mapping[str, Any],
    names: str | tuple[str, ...],
    kind: Any,
    default: Any = REQUIRED,
    *,
    null: bool = False,
    minimum: float | None = None,
    choices: Collection[Any] | None = None,
    section: str = "config.json",
) -> Any:
    """Read one field of a JSON object and check it.

    ``names`` is the field, or its spellings, of which the first present counts. ``kind`` is ``int``,
    ``float`` (an int will do), ``bool``, ``str`` or ``list[...]`` of one of these. An absent field
    gives ``default``; a null gives None where ``null`` allows it. ``minimum`` and ``choices`` bound
    the value. Raises ModelError naming the field, what it must be and what was found.
    """
    names = (names,) if isinstance(names, str) else names
    name = next((n for n in names if n in raw), None)
    if name is None:
        if default is REQUIRED:
            raise ModelError(f"{section}: field {names[0]!r} is missing; it must be {_describe(kind)}.")
        return default
    value = raw[name]
    if value is None and null:
        return None
    if not _matches(value, kind):
        expected = _describe(kind) + (" or null" if null else "")
        raise ModelError(
            f"{section}: field {name!r} must be {expected}, got {value!r} ({type(value).__name__}). "
            "Correct the file or override the field with json_model_override_args."
        )
    if minimum is not None and value < minimum:
        raise ModelError(f"{section}: field {name!r} must be at least {minimum}, got {value!r}.")
    if choices is not None and value not in choices:
        allowed = ", ".join(repr(choice) for choice in choices)
        raise ModelError(f"{section}: {name} = {value!r} is not supported. Supported: {allowed}.")
    return float(value) if kind is float else value


def _matches(value: Any, kind: Any) -> bool:
    """Whether a JSON value has the wanted type; bool is not a number here."""
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_matches(item, get_args(kind)[0]) for item in value)
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _describe(kind: Any) -> str:
    """A type in words, for messages."""
    if get_origin(kind) is list:
        return f"a list of {get_args(kind)[0].__name__}"
    words = {int: "an integer", float: "a number", bool: "true or false", str: "a string", dict: "an object"}
    return words[kind]


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
        if raw.get("quantization_config") is not None:
            quantization = raw["quantization_config"]
            method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
            raise ModelError(
                f"config.json: quantization_config with quant_method {method!r} is not supported."
            )
        hidden_size = read_field(raw, _HIDDEN_SIZE, int, minimum=1)
        num_heads = read_field(raw, _NUM_HEADS, int, minimum=1)
        return cls(
            architectures=tuple(read_field(raw, "architectures", list[str])),
            model_type=read_field(raw, "model_type", str, ""),
            vocab_size=read_field(raw, "vocab_size", int, minimum=1),
            hidden_size=hidden_size,
            num_layers=read_field(raw, _NUM_LAYERS, int, minimum=1),
            num_heads=num_heads,
            num_kv_heads=_read_num_kv_heads(raw, num_heads),
            head_dim=_read_head_dim(raw, hidden_size, num_heads),
            max_position_embeddings=read_field(raw, _MAX_POSITIONS, int, _DEFAULT_CONTEXT_LENGTH, minimum=1),
            context_length=_derive_context_length(raw),
            dtype=_read_dtype(raw),
            eos_token_ids=_read_token_ids(raw, "eos_token_id"),
            bos_token_id=next(iter(_read_token_ids(raw, "bos_token_id")), None),
            pad_token_id=next(iter(_read_token_ids(raw, "pad_token_id")), None),
            raw=raw,
        )

    def read(self, names: str | tuple[str, ...], kind: Any, default: Any = REQUIRED, **checks: Any) -> Any:
        """Read one more field of the file; arguments and errors as in :func:`read_field`."""
        return read_field(self.raw, names, kind, default, **checks)


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


def rope_fields(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary settings of a config as one object, from either form of the file.

    transformers 4 writes ``rope_theta`` and ``rope_scaling``, transformers 5 one ``rope_parameters``.
    Where both forms are present, as after an override, ``rope_scaling`` says how to scale and
    ``rope_parameters`` keeps the base and the rotated part of the head.
    """
    fields = dict(read_field(raw, "rope_parameters", dict, None, null=True) or {})
    scaling = read_field(raw, "rope_scaling", dict, None, null=True)
    if scaling:
        fields = {name: fields[name] for name in _ROPE_BASE if name in fields} | scaling
    for name in _ROPE_BASE:
        if raw.get(name) is not None:
            fields.setdefault(name, raw[name])
    return fields


def _derive_context_length(raw: Mapping[str, Any]) -> int:
    """Longest sequence in tokens: the first length field, times the rope factor where it extends it.

    A file that names the original length, or the llama3 scaling, already states the extended length.
    """
    length = read_field(raw, _CONTEXT_LENGTH, int, _DEFAULT_CONTEXT_LENGTH, minimum=1)
    rope = rope_fields(raw)
    extended = "original_max_position_embeddings" in rope or "original_max_position_embeddings" in raw
    if extended or "llama3" in (rope.get("rope_type"), rope.get("type")):
        return length
    factor = read_field(rope, "factor", float, 1.0, null=True, section=ROPE_SECTION)
    return int(length * (factor or 1.0))


def _read_dtype(raw: Mapping[str, Any]) -> torch.dtype | None:
    """The checkpoint's dtype: ``dtype`` (transformers 5) or ``torch_dtype`` (transformers 4)."""
    name = read_field(raw, ("dtype", "torch_dtype"), str, None, null=True)
    if name is None:
        return None
    name = name.removeprefix("torch.")
    if name not in _DTYPES:
        raise ModelError(f"config.json: dtype = {name!r} is not supported. Supported: {', '.join(_DTYPES)}.")
    return _DTYPES[name]


def _read_token_ids(raw: Mapping[str, Any], name: str) -> tuple[int, ...]:
    """A token id, a list of them or null, as a tuple; negative ids (some files say -1) mean none."""
    value = raw.get(name)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not _matches(ids, list[int]):
        raise ModelError(
            f"config.json: field {name!r} must be an integer, a list of integers or null, got {value!r}."
        )
    return tuple(token for token in ids if token >= 0)
