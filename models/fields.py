"""Reading one field of a JSON object strictly: its type, its bounds, its default."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, get_args, get_origin

from ..errors import ModelError

REQUIRED: Final = object()
"""Default of a field that must be present."""

_LIMITS: Final = {int: 2**63 - 1, float: sys.float_info.max}
_SHOWN: Final = 200  # characters of a wrong value that a message repeats
_NAMES_SHOWN: Final = 10


def read_field(
    raw: Mapping[str, Any],
    names: str | tuple[str, ...],
    kind: Any,
    default: Any = REQUIRED,
    *,
    null: bool = False,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: Collection[Any] | None = None,
    section: str = "config.json",
) -> Any:
    """Read one field of a JSON object and check it.

    ``names`` is the field, or its spellings, of which the first present counts. ``kind`` is ``int``,
    ``float`` (an int will do), ``bool``, ``str`` or ``list[...]`` of one of these. An absent field
    gives ``default``; a null gives None where ``null`` allows it. ``minimum``, ``maximum`` and ``choices``
    bound the value. Raises ModelError naming the field, what it must be and what was found.
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
    if not matches(value, kind):
        expected = _describe(kind) + (" or null" if null else "")
        raise ModelError(
            f"{section}: field {name!r} must be {expected}, got {shorten(value)} ({type(value).__name__}). "
            "Correct the file or override the field with json_model_override_args."
        )
    if kind in (int, float) and not abs(value) <= _LIMITS[kind]:  # NaN compares as false
        shown = str(value) if isinstance(value, float) else f"an integer of {value.bit_length()} bits"
        raise ModelError(f"{section}: field {name!r} must be a finite number of 64 bits, got {shown}.")
    if minimum is not None and value < minimum:
        raise ModelError(f"{section}: field {name!r} must be at least {minimum}, got {value!r}.")
    if maximum is not None and value > maximum:
        raise ModelError(f"{section}: field {name!r} must be at most {maximum}, got {value!r}.")
    if choices is not None and value not in choices:
        allowed = ", ".join(repr(choice) for choice in choices)
        raise ModelError(f"{section}: {name} = {value!r} is not supported. Supported: {allowed}.")
    return float(value) if kind is float else value


def matches(value: Any, kind: Any) -> bool:
    """Whether a JSON value has the wanted type; bool is not a number here."""
    if get_origin(kind) is list:
        return isinstance(value, list) and all(matches(item, get_args(kind)[0]) for item in value)
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


def shorten(value: Any) -> str:
    """A value of a file for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def list_names(names: Sequence[str]) -> str:
    """``names`` for a message, the first few of many."""
    shown = ", ".join(name if len(name) <= _SHOWN else name[:_SHOWN] + "..." for name in names[:_NAMES_SHOWN])
    rest = len(names) - _NAMES_SHOWN
    return f"{shown} and {rest} more" if rest > 0 else shown
