"""The rotary part of ``config.json`` as one object, and the context length that follows from it.

transformers 4 writes ``rope_theta`` and ``rope_scaling`` at the top level, transformers 5 one
``rope_parameters``; either may be changed by an override in the other form.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ..errors import ModelError
from .fields import read_field

ROPE_SECTION: Final = "config.json: rope_scaling"
"""How messages name the rotary part of the file, in either of its forms."""

MAX_POSITIONS: Final = ("max_position_embeddings", "n_positions")
DEFAULT_CONTEXT_LENGTH: Final = 2048
_CONTEXT_LENGTH = ("max_sequence_length", "seq_length", "max_seq_len", "model_max_length", *MAX_POSITIONS)
_MAX_CONTEXT_LENGTH = 2**31 - 1  # positions are int32
_BASE = ("rope_theta", "partial_rotary_factor")
_ORIGINAL = "original_max_position_embeddings"


def rope_fields(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary settings of a config as one object, from either form of the file.

    Where both forms are present ``rope_scaling`` says how to scale and ``rope_parameters`` keeps the base and
    the rotated part of the head.
    """
    fields = dict(read_field(raw, "rope_parameters", dict, None, null=True) or {})
    scaling = read_field(raw, "rope_scaling", dict, None, null=True)
    if scaling:
        fields = {name: fields[name] for name in _BASE if name in fields} | scaling
    for name in _BASE:
        if raw.get(name) is not None:
            fields.setdefault(name, raw[name])
    return fields


def merge_overrides(raw: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """``raw`` with top-level entries replaced by ``overrides``.

    Rotary settings count in whichever form they come: an override of the scaling replaces that of the file in
    both forms and keeps the base and the rotated part of the head, unless it names others itself.
    """
    merged = {**raw, **overrides}
    scales = "rope_scaling" in overrides or "rope_parameters" in overrides
    if not scales and not any(name in overrides for name in _BASE):
        return merged
    kept = {name: value for name, value in rope_fields(raw).items() if name in _BASE or not scales}
    kept = {name: value for name, value in kept.items() if name not in overrides}
    parameters = read_field(overrides, "rope_parameters", dict, None, null=True) or {}
    scaling = read_field(overrides, "rope_scaling", dict, None, null=True)
    merged |= {"rope_parameters": kept | parameters, "rope_scaling": scaling}
    if _ORIGINAL not in overrides and _ORIGINAL in {**parameters, **(scaling or {})}:
        merged.pop(_ORIGINAL, None)  # at the top level it would go before the one in the scaling
    return merged


def derive_context_length(raw: Mapping[str, Any]) -> int:
    """Longest sequence in tokens: the first length field, or the original length times the rope factor.

    A file may state the length before the extension or after it, so the longer of the two counts. The llama3
    scaling extends by less than its factor where the file gives a longer length than the original one, and
    says nothing where it names no original length.
    """
    length = read_field(raw, _CONTEXT_LENGTH, int, DEFAULT_CONTEXT_LENGTH, minimum=1)
    rope = rope_fields(raw)
    original = read_field(raw, _ORIGINAL, int, None, null=True, minimum=1)
    if original is None:
        original = read_field(rope, _ORIGINAL, int, None, null=True, minimum=1, section=ROPE_SECTION)
    kind = rope.get("rope_type", rope.get("type"))
    if kind == "llama3" and (original is None or length > original):
        return length
    factor = read_field(rope, "factor", float, None, null=True, section=ROPE_SECTION) or 1.0
    longest = max(length, (length if original is None else original) * factor)
    if longest > _MAX_CONTEXT_LENGTH:
        raise ModelError(
            f"config.json: a context of {longest:.4g} tokens is not possible; at most {_MAX_CONTEXT_LENGTH}"
            " are. Override max_position_embeddings or rope_scaling with json_model_override_args."
        )
    return int(longest)
