"""The keywords of JSON Schema: which are enforced, which say nothing about values, which are refused."""

from __future__ import annotations

import math
from typing import Any

from ...errors import GrammarError, unknown_option

ANNOTATIONS = frozenset(
    ("title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly")
    + ("$comment", "$schema", "$id", "$defs", "definitions", "discriminator")
)
APPLIERS = ("$ref", "const", "enum", "anyOf", "oneOf", "allOf")
OF_TYPE = {
    "string": ("minLength", "maxLength", "pattern", "format"),
    "integer": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    "array": ("items", "prefixItems", "minItems", "maxItems", "uniqueItems"),
    "object": (
        ("properties", "required", "additionalProperties", "patternProperties", "propertyNames")
        + ("minProperties", "maxProperties")
    ),
    "boolean": (),
    "null": (),
}
_KNOWN = frozenset(APPLIERS) | ANNOTATIONS | {"type", *sum(OF_TYPE.values(), ())}
_REFUSED = frozenset(
    ("not", "if", "then", "else", "contains", "minContains", "maxContains", "dependentSchemas")
    + ("dependencies", "dependentRequired", "unevaluatedProperties", "unevaluatedItems", "additionalItems")
    + ("$dynamicRef", "$recursiveRef", "$anchor", "$dynamicAnchor")
    + ("contentEncoding", "contentMediaType", "contentSchema")
)


def check_keywords(schema: dict, *, inside: bool) -> None:
    """Raise GrammarError for a keyword that nobody knows or that is not supported, ``inside`` of a schema."""
    if inside and "$id" in schema:
        raise GrammarError("$id inside a schema is not supported")
    for name in schema:
        if name in _REFUSED:
            raise GrammarError(f"{name} is not supported")
        if name not in _KNOWN and not name.startswith("x-"):
            problem = str(unknown_option("keyword", name, _KNOWN)).split(" Known")[0]
            raise GrammarError(f"{problem} It is refused: a misspelt limit would be none")


def constraining(schema: dict) -> list[str]:
    """The keywords of a schema that say something about values."""
    return [name for name in schema if name not in ANNOTATIONS and not name.startswith("x-")]


def type_names(given: Any) -> list[str]:
    """The value of ``type`` as a list. Raises GrammarError if it names no types."""
    names = [given] if isinstance(given, str) else given
    if (
        not isinstance(names, list)
        or not names
        or not all(isinstance(n, str) and n in OF_TYPE for n in names)
    ):
        raise GrammarError(f"type must be of {', '.join(OF_TYPE)}, or a list of those, got {given!r}")
    return names


def is_number(value: Any) -> bool:
    """Whether it is a number as JSON has them: not infinite, and no boolean, which Python takes for one."""
    return type(value) is int or (type(value) is float and math.isfinite(value))
