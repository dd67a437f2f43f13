"""JSON values and their types: what is equal, and of which type a value is."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Final

from ...errors import GrammarError

ATOMS: Final = ("object", "array", "string", "integer", "fraction", "boolean", "null")
"""Types that have no value in common; a ``number`` is an ``integer`` or a ``fraction``."""


class NoValue(GrammarError):
    """A schema, or a part of one, that nothing meets."""


def key(value: Any) -> str:
    """The same text for values that are equal in JSON: 1 and 1.0 are, 1 and true are not."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(name)}:{key(value[name])}" for name in sorted(value)) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(key, value)) + "]"
    return json.dumps(int(value) if isinstance(value, float) and value.is_integer() else value)


def atom(value: Any) -> str:
    """Which of ``ATOMS`` a value is of."""
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, (int, float)):
        return "integer" if isinstance(value, int) or value.is_integer() else "fraction"
    return {str: "string", list: "array", dict: "object", type(None): "null"}[type(value)]


def atoms(types: Iterable[str]) -> list[str]:
    """The atoms of a list of types."""
    given = set(types)
    return [one for one in ATOMS if one in given or (one in ("integer", "fraction") and "number" in given)]


def types(given: Iterable[str]) -> list[str]:
    """Atoms as types."""
    found = list(given)
    if "integer" in found and "fraction" in found:
        found = [one for one in found if one not in ("integer", "fraction")] + ["number"]
    return found
