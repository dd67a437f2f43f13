"""The keywords of JSON Schema: which are enforced, which say nothing about values, which are refused."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable
from typing import Any

from ...errors import GrammarError
from .drafts import REFUSED

_OF_VALUES = ("$ref", "const", "enum", "anyOf", "oneOf", "allOf", "not", "if", "then", "else")
_OF_PARTS = ("dependentRequired", "dependentSchemas", "unevaluatedProperties", "unevaluatedItems")
APPLIERS = _OF_VALUES + _OF_PARTS
_OF_NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
OF_TYPE = {
    "string": ("minLength", "maxLength", "pattern", "format"),
    "integer": _OF_NUMBERS,
    "number": _OF_NUMBERS,
    "array": (
        ("items", "prefixItems", "minItems", "maxItems", "uniqueItems")
        + ("contains", "minContains", "maxContains")
    ),
    "object": (
        ("properties", "required", "additionalProperties", "patternProperties", "propertyNames")
        + ("minProperties", "maxProperties")
    ),
    "boolean": (),
    "null": (),
}
ASSERTIONS = frozenset(APPLIERS) | {"type", *sum(OF_TYPE.values(), ())}
"""All that says something about values, in the terms of draft 2020-12."""

_OLDER = frozenset(("additionalItems", "dependencies", "divisibleBy", "extends", "disallow", "$recursiveRef"))
# what resembles a keyword and says nothing about values
_HARMLESS = frozenset(("types", "formats", "patterns", "constants", "contentMediaType", "contentEncoding"))
_BY_SMALL_LETTERS = {name.lower(): name for name in ASSERTIONS | _OLDER | {"$dynamicRef"}}


def check_keywords(schema: dict) -> None:
    """Raise GrammarError for a keyword whose value is not what it must be, and for what resembles a keyword.

    Other unknown names are annotations, as the standard has it.
    """
    if REFUSED in schema:
        raise GrammarError(schema[REFUSED])
    for name, value in schema.items():
        if name in _SHAPES:
            expected, is_right = _SHAPES[name]
            if not is_right(value):
                raise GrammarError(f"{name} must be {expected}, got {_shown(value)}")
        elif name in _OLDER:
            raise GrammarError(f"{name} is not supported")
        elif name == "nullable" and value is not False:
            raise GrammarError(
                'nullable is no keyword of JSON Schema: write "type": ["...", "null"] or anyOf with'
                ' {"type": "null"}'
            )
        elif name not in ASSERTIONS and (meant := _resembled(name)):
            raise GrammarError(
                f"unknown keyword {name!r}. Did you mean {meant!r}? It is refused: a misspelt limit would be"
                " none"
            )


def _resembled(name: str) -> str | None:
    """The keyword that an unknown one seems to be meant for."""
    small = name.lower()
    if small in _BY_SMALL_LETTERS:
        return _BY_SMALL_LETTERS[small]
    if name in _HARMLESS or len(name) < 5 or small.startswith("x-") or len(name) > 32:
        return None
    known = [one for one in _BY_SMALL_LETTERS if len(one) > 4]
    found = [one for one in known if sorted(one) == sorted(small)]  # two letters in each other's place
    found = found or difflib.get_close_matches(small, known, 1, 0.86)
    return _BY_SMALL_LETTERS[found[0]] if found else None


def constraining(schema: dict) -> list[str]:
    """The keywords of a schema that say something about values."""
    return [name for name in schema if name in ASSERTIONS]


def type_names(given: Any) -> list[str]:
    """The value of ``type`` as a list."""
    return [given] if isinstance(given, str) else given


def is_number(value: Any) -> bool:
    """Whether it is a number as JSON has them: not infinite, and no boolean, which Python takes for one."""
    return type(value) is int or (type(value) is float and math.isfinite(value))


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def _is_schema(value: Any) -> bool:
    return isinstance(value, (dict, bool))


def _is_list_of_schemas(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_schema, value))


def _are_schemas(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_schema, value.values()))


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_size(value: Any) -> bool:
    return is_number(value) and value >= 0 and value == int(value)


def _are_types(value: Any) -> bool:
    names = type_names(value)
    return isinstance(names, list) and bool(names) and all(isinstance(n, str) and n in OF_TYPE for n in names)


_SCHEMA = "a schema (an object or a boolean)", _is_schema
_SCHEMAS = "a list of schemas with at least one", _is_list_of_schemas
_BY_NAME = "an object of schemas", _are_schemas
_NUMBER = "a number", is_number
_SIZE = "a whole number, at least 0", _is_size
_TEXT = "a string", lambda value: isinstance(value, str)
_SHAPES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "$ref": _TEXT,
    "enum": ("a list with at least one value", lambda value: isinstance(value, list) and bool(value)),
    "type": (f"of {', '.join(OF_TYPE)}, or a list of those", _are_types),
    "required": ("a list of names", _are_names),
    "uniqueItems": ("true or false", lambda value: isinstance(value, bool)),
    "multipleOf": ("a number above 0", lambda value: is_number(value) and value > 0),
    "prefixItems": ("a list of schemas", lambda value: value == [] or _is_list_of_schemas(value)),
    "dependentRequired": (
        "an object of lists of names",
        lambda value: isinstance(value, dict) and all(map(_are_names, value.values())),
    ),
}
_SHAPES |= dict.fromkeys(("anyOf", "oneOf", "allOf"), _SCHEMAS)
_SHAPES |= dict.fromkeys(("properties", "patternProperties", "dependentSchemas"), _BY_NAME)
_SHAPES |= dict.fromkeys(
    ("not", "if", "then", "else", "items", "additionalProperties", "propertyNames", "contains")
    + ("unevaluatedProperties", "unevaluatedItems"),
    _SCHEMA,
)
_SHAPES |= dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), _NUMBER)
_SHAPES |= dict.fromkeys(
    ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
    + ("minContains", "maxContains"),
    _SIZE,
)
_SHAPES |= dict.fromkeys(("pattern", "format"), _TEXT)
