"""Telling schemas apart: whether no JSON value can be of two of them, as far as that is plain to see."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ...errors import GrammarError

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

    def narrowed(self, other: _Kind) -> _Kind:
        """What values of both kinds look like."""
        types = [kind.types for kind in (self, other) if kind.types is not None]
        values = [kind.values for kind in (self, other) if kind.values is not None]
        return _Kind(
            frozenset.intersection(*types) if types else None,
            frozenset.intersection(*values) if values else None,
            self.constants + other.constants,
        )


def check_apart(groups: Sequence[Sequence[Any]], resolve: Callable[[str], Any]) -> None:
    """Raise GrammarError unless every value is plainly of one option of a ``oneOf`` at most.

    So it is if options have other types, other values, or other constants in required properties. Each option
    is a group of schemas, of which a value must meet one. ``resolve`` follows a ``$ref``.
    """
    kinds = [[_kind(schema, resolve) for schema in group] for group in groups]
    for first, second in itertools.combinations(kinds, 2):
        if not all(one.excludes(other) for one in first for other in second):
            raise GrammarError(
                "oneOf is supported where types, values or a constant property tell the options apart; "
                "here they do not: use anyOf"
            )


def key(value: Any) -> str:
    """The same text for values that are equal in JSON: 1 and 1.0 are, 1 and true are not."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(name)}:{key(value[name])}" for name in sorted(value)) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(key, value)) + "]"
    return json.dumps(int(value) if isinstance(value, float) and value.is_integer() else value)


def types_of(value: Any) -> frozenset[str]:
    """The JSON types that a value is of: a whole number is an integer and a number."""
    if isinstance(value, bool):
        return frozenset(("boolean",))
    if isinstance(value, (int, float)):
        whole = isinstance(value, int) or value.is_integer()
        return frozenset(("integer", "number") if whole else ("number",))
    return frozenset(({str: "string", list: "array", dict: "object", type(None): "null"}[type(value)],))


def _kind(schema: Any, resolve: Callable[[str], Any], *, nested: bool = False) -> _Kind:
    for _ in range(_MAX_DEPTH):
        if not (isinstance(schema, dict) and isinstance(schema.get("$ref"), str)):
            break
        schema = resolve(schema["$ref"])
    if not isinstance(schema, dict):
        return _Kind()
    if isinstance(schema.get("allOf"), list) and len(schema) == 1:
        return functools.reduce(
            _Kind.narrowed, [_kind(one, resolve, nested=nested) for one in schema["allOf"]]
        )
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if isinstance(values, list):
        types = frozenset[str]().union(*map(types_of, values))
        return _Kind(types, frozenset(map(key, values)))
    given = schema.get("type")
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return _Kind()
    types = frozenset(names) | ({"integer"} if "number" in names else set())
    properties, required = schema.get("properties"), schema.get("required")
    constants = []
    if isinstance(properties, dict) and isinstance(required, list) and not nested:
        for name in [name for name in properties if name in required]:
            known = _kind(properties[name], resolve, nested=True).values
            if known is not None:
                constants.append((name, known))
    return _Kind(types, None, tuple(constants))
