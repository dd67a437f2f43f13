"""Schemas that a value must meet together, as schemas of which it must meet one.

``allOf``, and keywords beside ``$ref``, ``anyOf``, ``oneOf`` or ``enum``, are conjunctions. A grammar knows
choices but no conjunctions, so they are worked out here, keyword by keyword: bounds become the tighter ones,
properties the union, ``anyOf`` is multiplied out. Schemas below the top (of properties and items) are put
under an ``allOf`` of their own, to be worked out when somebody gets there: so recursive ones come to an end.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from typing import Any

from ...errors import GrammarError
from ..budget import Budget
from .keywords import APPLIERS, check_keywords, constraining, is_number, type_names
from .kinds import check_apart, key

_MAX_OPTIONS = 1024
_MAX_REFERENCES = 64
_LARGER = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
_SMALLER = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")
_RANGES = tuple(
    (low, low.replace("min", "max")) for low in ("minimum", "minLength", "minItems", "minProperties")
)
_NAMED = ("properties", "patternProperties", "additionalProperties", "propertyNames")


class Conjunctions:
    """Works out conjunctions; ``resolve`` follows a ``$ref``."""

    def __init__(self, resolve: Callable[[str], Any], budget: Budget) -> None:
        self._resolve = resolve
        self._budget = budget

    def options(self, schema: Any, *, inside: bool, references: int = 0) -> list[dict]:
        """Schemas without any of ``APPLIERS`` but ``enum``, of which a value must meet one; possibly none.

        ``inside``: the schema is not the whole one.
        """
        if isinstance(schema, bool):
            return [{}] if schema else []
        if not isinstance(schema, dict):
            raise GrammarError(f"a schema must be an object or a boolean, got {json.dumps(schema)[:40]}")
        if references > _MAX_REFERENCES:
            raise GrammarError("a $ref that leads back to itself with nothing around it")
        self._budget.spend(5, "a conjunction of schemas")
        check_keywords(schema, inside=inside)
        found = [{name: schema[name] for name in constraining(schema) if name not in APPLIERS}]
        if "$ref" in schema:
            found = self._both(found, self._inner(self._resolve(schema["$ref"]), references))
        if "const" in schema:
            found = self._both(found, [{"enum": [schema["const"]]}])
        if "enum" in schema:
            if not isinstance(schema["enum"], list) or not schema["enum"]:
                raise GrammarError("enum must be a list with at least one value")
            found = self._both(found, [{"enum": schema["enum"]}])
        for part in self._schemas(schema, "allOf"):
            found = self._both(found, self._inner(part, references))
        if parts := self._schemas(schema, "anyOf"):
            each = [self._inner(part, references) for part in parts]
            found = self._both(found, list(itertools.chain(*each)))
        if parts := self._schemas(schema, "oneOf"):  # last: what stands beside it helps to tell them apart
            each = [self._both(found, self._inner(part, references)) for part in parts]
            check_apart(each, self._resolve)
            found = list(itertools.chain(*each))
        return found

    def _inner(self, schema: Any, references: int) -> list[dict]:
        return self.options(schema, inside=True, references=references + 1)

    def _schemas(self, schema: dict, name: str) -> list:
        value = schema.get(name, [])
        if name in schema and (not isinstance(value, list) or not value):
            raise GrammarError(f"{name} must be a list of schemas with at least one")
        return value

    def _both(self, first: list[dict], second: list[dict]) -> list[dict]:
        if len(first) * len(second) > _MAX_OPTIONS:
            raise GrammarError(f"more than {_MAX_OPTIONS} combinations of anyOf and oneOf are not supported")
        self._budget.spend(10 * len(first) * len(second), "a conjunction of schemas")
        merged = [_merge(one, other) for one in first for other in second]
        return [option for option in merged if option is not None]


def all_of(*schemas: Any) -> Any:
    """A schema for what meets all of these."""
    parts: dict[str, Any] = {}
    for schema in schemas:
        is_conjunction = isinstance(schema, dict) and set(schema) == {"allOf"}
        inner = schema["allOf"] if is_conjunction and isinstance(schema["allOf"], list) else [schema]
        if any(part is False for part in inner):
            return False
        parts |= {json.dumps(part): part for part in inner if part is not True and part != {}}
    if not parts:
        return True
    return next(iter(parts.values())) if len(parts) == 1 else {"allOf": list(parts.values())}


def _merge(first: dict, second: dict) -> dict | None:
    """Both; None if no value is of both."""
    if not first or not second:
        return first or second
    merged: dict[str, Any] = {}
    for name in dict.fromkeys((*first, *second)):
        if name in _NAMED or name in ("items", "prefixItems"):
            continue
        given = [schema[name] for schema in (first, second) if name in schema]
        merged[name] = given[0] if len(given) == 1 else _tighter(name, *given)
        if merged[name] == [] and name in ("type", "enum"):
            return None
    _merge_items(first, second, merged)
    _merge_properties(first, second, merged)
    return merged if _is_possible(merged) else None


def _tighter(name: str, first: Any, second: Any) -> Any:
    """What a keyword must say to mean both; nonsense is left for whoever reads it."""
    if key(first) == key(second):
        return first
    if name == "type":
        return _types(first, second)
    if name == "enum":
        known = set(map(key, second))
        return [value for value in first if key(value) in known]
    if name == "required" and isinstance(first, list) and isinstance(second, list):
        return (
            list(dict.fromkeys(first + second)) if all(isinstance(n, str) for n in first + second) else first
        )
    if name == "uniqueItems" and type(first) is type(second) is bool:
        return first or second
    if is_number(first) and is_number(second):
        if name in _LARGER:
            return max(first, second)
        if name in _SMALLER:
            return min(first, second)
    if name == "multipleOf" and type(first) is type(second) is int:
        return math.lcm(first, second)
    raise GrammarError(
        f"{name} {json.dumps(first)[:40]} and {json.dumps(second)[:40]} of one value cannot be merged"
    )


def _types(first: Any, second: Any) -> list[str]:
    """The types in both; an integer is a number."""
    one, other = (
        [*names, *(["integer"] if "number" in names else [])] for names in map(type_names, (first, second))
    )
    common = [name for name in dict.fromkeys(one) if name in other]
    return [name for name in common if name != "integer" or "number" not in common]


def _merge_items(first: dict, second: dict, merged: dict) -> None:
    length = 0
    for schema in (first, second):
        given = schema.get("prefixItems", [])
        if not isinstance(given, list) or isinstance(schema.get("items"), list):
            raise GrammarError("prefixItems must be a list of schemas, and items a schema")
        length = max(length, len(given))

    def at(schema: dict, index: int) -> Any:
        given = schema.get("prefixItems", [])
        return given[index] if index < len(given) else schema.get("items", True)

    if length:
        merged["prefixItems"] = [all_of(at(first, i), at(second, i)) for i in range(length)]
    if "items" in first or "items" in second:
        merged["items"] = all_of(first.get("items", True), second.get("items", True))


def _merge_properties(first: dict, second: dict, merged: dict) -> None:
    patterns = [schema["patternProperties"] for schema in (first, second) if "patternProperties" in schema]
    if patterns:
        named = [schema for schema in (first, second) if any(name in schema for name in _NAMED)]
        if len(named) > 1 and any(key(first.get(name)) != key(second.get(name)) for name in _NAMED):
            raise GrammarError("patternProperties of one object cannot be merged with what others say of it")
        merged |= {name: named[0][name] for name in _NAMED if name in named[0]}
        return
    for name in ("additionalProperties", "propertyNames"):
        given = [schema[name] for schema in (first, second) if name in schema]
        if given:
            merged[name] = all_of(*given)
    declared = [schema.get("properties", {}) for schema in (first, second)]
    if not all(isinstance(properties, dict) for properties in declared):
        raise GrammarError("properties must be an object of schemas")
    if "properties" in first or "properties" in second:
        others = [schema.get("additionalProperties", True) for schema in (first, second)]
        merged["properties"] = {
            name: all_of(*(own.get(name, other) for own, other in zip(declared, others)))
            for name in dict.fromkeys((*declared[0], *declared[1]))
        }


def _is_possible(schema: dict) -> bool:
    """False where a merged schema plainly contradicts itself."""
    for low, high in _RANGES:
        bounds = schema.get(low), schema.get(high)
        if all(map(is_number, bounds)) and bounds[0] > bounds[1]:
            return False
    properties, required = schema.get("properties", {}), schema.get("required")
    closed = schema.get("additionalProperties") is False and "patternProperties" not in schema
    names = [name for name in required if isinstance(name, str)] if isinstance(required, list) else []
    return not any(properties.get(name, not closed) is False for name in names)
