"""The rotary part of ``config.json``: one frozen object for all scalings we know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from ...errors import ModelError
from ..config import ModelConfig
from ..fields import REQUIRED, read_field
from ..rope_fields import ROPE_SECTION, rope_fields

# Scaling -> fields it cannot do without.
_REQUIRED_FIELDS: Final = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": (),
    "longrope": ("short_factor", "long_factor"),
}
_ALIASES: Final = {"su": "longrope"}  # what early Phi-3 files call it
_NO_EFFECT: Final = frozenset({"finetuned"})  # notes of the training that change nothing here
_DEFAULT_THETA = 10000.0
_OPTIONAL_NUMBERS: Final = (
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
)
_PER_PAIR: Final = ("short_factor", "long_factor")
_KNOWN_FIELDS: Final = _NO_EFFECT.union(
    ("rope_type", "type", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings"),
    ("max_position_embeddings", "truncate", *_OPTIONAL_NUMBERS, *_PER_PAIR),
)


@dataclass(frozen=True)
class RopeConfig:
    """How positions become rotations; fields of other scalings than ``rope_type`` keep their defaults."""

    rope_type: str
    theta: float
    rotary_dim: int  # leading dimensions of a head that rotate, even
    max_position_embeddings: int
    original_max_position_embeddings: int  # length of the pretraining, in tokens
    factor: float | None = None  # how much longer than that
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    attention_factor: float | None = None  # multiplies cos and sin
    beta_fast: float | None = None
    beta_slow: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    short_factor: tuple[float, ...] = ()  # [rotary_dim / 2]
    long_factor: tuple[float, ...] = ()  # [rotary_dim / 2]

    @classmethod
    def from_model(cls, config: ModelConfig, fields: Mapping[str, Any] | None = None) -> RopeConfig:
        """Read the rotary settings of a model.

        ``fields`` replaces those of the file's top level, for families with several of them. Raises
        ModelError for an unknown scaling or field, a missing field, or an impossible value.
        """
        fields = rope_fields(config.raw) if fields is None else fields
        rope_type = _read_type(fields)
        original = read_field(config.raw, "original_max_position_embeddings", int, None, null=True, minimum=1)
        if original is None:
            original = _read(fields, "original_max_position_embeddings", int, config.max_position_embeddings)
        rope = cls(
            rope_type=rope_type,
            theta=_read(fields, "rope_theta", float, _DEFAULT_THETA),
            rotary_dim=int(config.head_dim * _read(fields, "partial_rotary_factor", float, 1.0)),
            max_position_embeddings=config.max_position_embeddings,
            original_max_position_embeddings=original,
            truncate=_read(fields, "truncate", bool, True),
            short_factor=tuple(_read(fields, "short_factor", list[float], [])),
            long_factor=tuple(_read(fields, "long_factor", list[float], [])),
            **{name: _read_optional(fields, name) for name in _OPTIONAL_NUMBERS},
        )
        _check(rope, fields, config.head_dim)
        return rope


def _read(fields: Mapping[str, Any], name: str, kind: Any, default: Any) -> Any:
    """Read a rotary field that must not be null."""
    return read_field(fields, name, kind, default, section=ROPE_SECTION)


def _read_optional(fields: Mapping[str, Any], name: str) -> float | None:
    """Read a rotary number that may be null or absent."""
    return read_field(fields, name, float, None, null=True, minimum=0, section=ROPE_SECTION)


def _read_type(fields: Mapping[str, Any]) -> str:
    """Name of the scaling, old and new spelling, with everything its formula needs present."""
    choices = (*_REQUIRED_FIELDS, *_ALIASES)
    name = read_field(fields, ("rope_type", "type"), str, "default", choices=choices, section=ROPE_SECTION)
    rope_type = _ALIASES.get(name, name)
    for field in _REQUIRED_FIELDS[rope_type]:
        kind = list[float] if field in _PER_PAIR else float
        read_field(fields, field, kind, REQUIRED, section=f"{ROPE_SECTION} ({rope_type})")
    unknown = sorted(fields.keys() - _KNOWN_FIELDS)
    if unknown:
        raise ModelError(
            f"{ROPE_SECTION}: fields {unknown} are not supported: they would change the rotation. "
            f"Supported: {', '.join(sorted(_KNOWN_FIELDS))}."
        )
    return rope_type


def _check(rope: RopeConfig, fields: Mapping[str, Any], head_dim: int) -> None:
    """Raise ModelError for values that no formula can use."""
    half = rope.rotary_dim // 2
    if rope.rotary_dim % 2 or not 0 < rope.rotary_dim <= head_dim:
        raise ModelError(
            f"config.json: the rotated dimensions must be an even number from 2 to head_dim ({head_dim}), "
            f"got {rope.rotary_dim} with partial_rotary_factor {fields.get('partial_rotary_factor', 1.0)}."
        )
    if rope.rope_type == "dynamic" and half < 2:
        raise ModelError(
            f"{ROPE_SECTION}: dynamic scaling needs at least 4 rotated dimensions, got {rope.rotary_dim}."
        )
    if rope.factor == 0 or rope.theta <= 0:
        raise ModelError(
            f"{ROPE_SECTION}: factor ({rope.factor}) and rope_theta ({rope.theta}) must be above 0."
        )
    if rope.rope_type == "llama3" and rope.low_freq_factor == rope.high_freq_factor:
        raise ModelError(
            f"{ROPE_SECTION}: low_freq_factor and high_freq_factor are both {rope.low_freq_factor}."
        )
    if rope.rope_type == "longrope":
        for name in _PER_PAIR:
            got = len(getattr(rope, name))
            if got != half:
                raise ModelError(f"{ROPE_SECTION}: {name} must have {half} numbers (rotated / 2), got {got}.")
