"""Telling schemas apart: whether no JSON value can be of two of them, as far as that is plain to see."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

_MAX_DEPTH = 16  # of references to references


class _Kind(NamedTuple):
    """What the values of a schema look like; ``values`` and ``constants`` (of required properties) as JSON.

    None for ``types`` or ``values``: not known.
    """

    types: frozenset[str] | None = None
    values: frozenset[str] | None = None
    constants: tuple[tuple[str, frozenset[str]], ...] = ()

    def excludes(self, other: _Kind) -> bool:
        """No value is of both kinds."""
        if self.types is None or other.types is None:
            return False
        if not self.types & other.types:
            return True
        if self.values is not None and other.values is not None:
            return not self.values & other.values
        if self.types != {"object"} or other.types != {"object"}:
            return False
        theirs = dict(other.constants)
        return any(name in theirs and not values & theirs[name] for name, values in self.constants)


def tell_apart(schemas: Sequence[Any], resolve: Callable[[str], Any]) -> bool:
    """Whether every value is of one schema at most: of other types, values, or constant required properties.

    ``resolve`` follows a ``$ref``.
    """
    kinds = [_kind(schema, resolve) for schema in schemas]
    return all(first.excludes(second) for first, second in itertools.combinations(kinds, 2))


def types_of(value: Any) -> frozenset[str]:
    """The JSON types that a value is of: a whole number is an integer and a number."""
    if isinstance(value, bool):
        return frozenset(("boolean",))
    if isinstance(value, (int, float)):
        return frozenset(("integer", "number") if value == int(value) else ("number",))
    return frozenset(({str: "string", list: "array", dict: "object", type(None): "null"}[type(value)],))


def _kind(schema: Any, resolve: Callable[[str], Any], *, nested: bool = False) -> _Kind:
    for _ in range(_MAX_DEPTH):
        if not (isinstance(schema, dict) and isinstance(schema.get("$ref"), str)):
            break
        schema = resolve(schema["$ref"])
    if not isinstance(schema, dict):
        return _Kind()
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if isinstance(values, list):
        types = frozenset[str]().union(*map(types_of, values))
        return _Kind(types, frozenset(json.dumps(value, sort_keys=True) for value in values))
    given = schema.get("type")
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, list):
        return _Kind()
    types = frozenset(names) | ({"integer"} if "number" in names else set())
    properties, required = schema.get("properties"), schema.get("required")
    constants = []
    if isinstance(properties, dict) and isinstance(required, list) and not nested:
        for name in properties.keys() & set(required):
            known = _kind(properties[name], resolve, nested=True).values
            if known is not None:
                constants.append((name, known))
    return _Kind(types, None, tuple(constants))
