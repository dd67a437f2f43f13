"""What an object or list, a text or a number must meet at once, keyword by keyword.

An *option* is a conjunction that was worked out, as a dict: ``type`` is a list of atoms; ``enum`` and
``excluded`` are values; ``pattern``, ``format``, ``no_pattern``, ``no_format`` and ``propertyNames`` are
lists, all to be met; ``contains`` is a list of (schema, least, most); ``members`` is a list of
(``properties``, ``patternProperties``, ``additionalProperties`` or None), which each hold on their own.
``negated`` marks what comes of a ``not``, ``OPEN`` what is as open as the standard has it. Other keywords are
as in schemas. As there, a keyword says something about values of its own types only.
"""

from __future__ import annotations

import json
from decimal import Decimal
from fractions import Fraction
from math import gcd, lcm
from typing import Any, Protocol

from .drafts import OPEN
from .keywords import APPLIERS, constraining, type_names
from .kinds import ATOMS, atom, atoms, key


class Judge(Protocol):
    """Says whether values meet schemas and options; None if that is not certain."""

    def __call__(self, schema: Any, value: Any) -> bool | None:
        """Whether a value meets a schema."""

    def option(self, option: dict, value: Any) -> bool | None:
        """Whether a value meets an option."""

    def found(self, pattern: str, text: str) -> bool | None:
        """Whether a pattern is found in a text."""


_LARGER = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
_SMALLER = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")
_LISTS = ("pattern", "format", "no_pattern", "no_format", "propertyNames", "contains", "excluded", "beyond")
_OF = {"Length": ("string",), "Items": ("array",), "Properties": ("object",), "imum": ("integer", "fraction")}


def leaf(schema: dict) -> dict:
    """The keywords of a schema that stand for themselves, as an option."""
    given = {name: schema[name] for name in constraining(schema) if name not in APPLIERS}
    option: dict[str, Any] = {OPEN: True} if OPEN in schema and given else {}
    if "type" in given:
        option["type"] = atoms(type_names(given.pop("type")))
    named = [given.pop(name, otherwise) for name, otherwise in _MEMBERS]
    if named != [otherwise for _, otherwise in _MEMBERS]:
        option["members"] = [named]
    for name in ("pattern", "format", "propertyNames"):
        if name in given:
            option[name] = [given.pop(name)]
    least, most = given.pop("minContains", 1), given.pop("maxContains", None)
    if "contains" in given:
        wanted = given.pop("contains")
        if least or most is not None:
            option["contains"] = [[wanted, int(least), most if most is None else int(most)]]
    return option | given


_MEMBERS: tuple[tuple[str, dict[str, Any] | None], ...] = (
    ("properties", {}),
    ("patternProperties", {}),
    ("additionalProperties", None),
)


def all_of(*schemas: Any) -> Any:
    """A schema for what meets all of these."""
    parts: dict[str, Any] = {}
    for schema in schemas:
        inner = schema["allOf"] if isinstance(schema, dict) and set(schema) == {"allOf"} else [schema]
        if not isinstance(inner, list):
            inner = [schema]
        if any(part is False for part in inner):
            return False
        parts |= {json.dumps(part): part for part in inner if part is not True and part != {}}
    if not parts:
        return True
    return next(iter(parts.values())) if len(parts) == 1 else {"allOf": list(parts.values())}


def none_of(schema: Any) -> Any:
    """A schema for what does not meet this one."""
    if isinstance(schema, bool):
        return not schema
    if not constraining(schema):
        return False
    if constraining(schema) == ["not"]:
        return schema["not"]
    return {"not": schema}


def merge(first: dict, second: dict, judge: Judge) -> dict | None:
    """Both; None if no value is of both."""
    merged = dict(first)
    for name, value in second.items():
        if name in ("members", "items", "prefixItems"):
            continue
        merged[name] = value if name not in first else _tighter(name, first[name], value)
    _merge_items(first, second, merged)
    if "members" in second:
        merged["members"] = _members(first.get("members", []), second["members"], judge)
        if not merged["members"]:
            del merged["members"]
    return _possible(merged, judge)


def _tighter(name: str, first: Any, second: Any) -> Any:
    """What a keyword must say to mean both."""
    if name == "type":
        return [one for one in first if one in second]
    if name == "enum":
        known = set(map(key, second))
        return [value for value in first if key(value) in known]
    if name == "required":
        return list(dict.fromkeys([*first, *second]))
    if name in _LISTS:
        known = set(map(key, first))
        return [*first, *(one for one in second if key(one) not in known)]
    if name in ("uniqueItems", "negated", OPEN):
        return first or second
    if name in _LARGER:
        return max(first, second)
    if name in _SMALLER:
        return min(first, second)
    one, other = Fraction(repr(first)), Fraction(repr(second))
    both = Fraction(lcm(one.numerator, other.numerator), gcd(one.denominator, other.denominator))
    if both.denominator == 1:
        return int(both)
    return float(Decimal(both.numerator) / Decimal(both.denominator))


def _merge_items(first: dict, second: dict, merged: dict) -> None:
    length = max(len(first.get("prefixItems", ())), len(second.get("prefixItems", ())))

    def at(option: dict, index: int) -> Any:
        given = option.get("prefixItems", ())
        return given[index] if index < len(given) else option.get("items", True)

    if length:
        merged["prefixItems"] = [all_of(at(first, i), at(second, i)) for i in range(length)]
    if "items" in first or "items" in second:
        merged["items"] = all_of(first.get("items", True), second.get("items", True))


def _members(first: list, second: list, judge: Judge) -> list:
    """What both say of members, without what the first says already."""
    known = set(map(key, first))
    merged = list(first)
    for shape in second:
        if key(shape) in known:
            continue
        properties, patterns, others = shape
        kept = {}
        for name, schema in properties.items():
            verdict = _told(name, schema, first, judge)
            if verdict is not True:
                kept[name] = schema if verdict is None else verdict
        if not properties or kept or patterns or others is not None:
            merged.append([kept, patterns, others])
    return merged


def _told(name: str, schema: Any, shapes: list, judge: Judge) -> Any:
    """What ``schema`` adds to what is known of a property: True if nothing, None if that is not plain."""
    for properties, patterns, others in shapes:
        if name not in properties:
            if schema is False and others is False and not patterns:
                return True
            continue
        own = properties[name]
        if own is False or key(own) == key(schema):
            return True
        values = _values(own)
        if values is not None:
            verdicts = [judge(schema, value) for value in values]
            if None in verdicts:
                continue
            if all(verdicts):
                return True
            return (
                {"enum": [value for value, one in zip(values, verdicts) if one]} if any(verdicts) else False
            )
    return None


def _values(schema: Any) -> list | None:
    """The values of a schema that is no more than those."""
    if not isinstance(schema, dict):
        return None
    if "const" in schema:
        return [schema["const"]]
    return schema["enum"] if isinstance(schema.get("enum"), list) else None


def _possible(option: dict, judge: Judge) -> dict | None:
    """An option less the types that its keywords exclude; None if none are left."""
    excluded: set[str] = set()
    for end, of in _OF.items():
        low = max(
            (option[name] for name in (f"min{end}", f"exclusiveMin{end}") if name in option), default=None
        )
        high = min(
            (option[name] for name in (f"max{end}", f"exclusiveMax{end}") if name in option), default=None
        )
        if low is not None and high is not None:
            is_open = option.get(f"exclusiveMin{end}") == low or option.get(f"exclusiveMax{end}") == high
            if low > high or (low == high and is_open):
                excluded |= set(of)
    shapes = option.get("members", [])
    for name in option.get("required", ()):
        closed = (name not in p and others is False and not patterns for p, patterns, others in shapes)
        if any(properties.get(name) is False for properties, _, _ in shapes) or any(closed):
            excluded.add("object")
    if excluded:
        option = option | {"type": [one for one in option.get("type", ATOMS) if one not in excluded]}
    if "enum" in option:
        values = _met(option, judge)
        if not values:
            return None
        option = option | {"enum": values}
    return None if option.get("type") == [] else option


def _met(option: dict, judge: Judge) -> list:
    """The values of its ``enum`` that an option lets through for certain."""
    rest = {name: value for name, value in option.items() if name != "enum"}
    types = rest.pop("type", ATOMS)
    values = [value for value in option["enum"] if atom(value) in types]
    return [value for value in values if judge.option(rest, value)] if rest else values


def declared(option: dict) -> dict[str, None]:
    """The properties that an option speaks of, except to forbid them."""
    return dict.fromkeys(
        name
        for properties, _, _ in option.get("members", [])
        for name, one in properties.items()
        if one is not False
    )


def is_closed(option: dict) -> bool:
    """Whether no members but the declared ones are to be written: unless a schema says otherwise."""
    shapes = option.get("members", [])
    if OPEN not in option and all(others is None for _, _, others in shapes):
        return bool(declared(option)) or any(patterns for _, patterns, _ in shapes)
    return any(others is False for _, _, others in shapes)
