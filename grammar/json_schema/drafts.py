"""Schemas of every draft in the terms of draft 2020-12, without a change of what they mean.

Schemas that name no draft are read as 2020-12, and what only older drafts have as they had it. So are those
that name one by another address than its own (``https:`` for draft 7): validators do not know it either, and
what stands beside a ``$ref`` then counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final
from urllib.parse import urldefrag, urljoin

LATEST: Final = 2020
_BY_ADDRESS: Final = {
    "http://json-schema.org/draft-03/schema": 3,
    "http://json-schema.org/draft-04/schema": 4,
    "http://json-schema.org/draft-06/schema": 6,
    "http://json-schema.org/draft-07/schema": 7,
    "https://json-schema.org/draft/2019-09/schema": 2019,
    "https://json-schema.org/draft/2020-12/schema": LATEST,
}
_ONE: Final = ("not", "if", "then", "else", "additionalProperties", "propertyNames", "contains", "items") + (
    "additionalItems", "unevaluatedProperties", "unevaluatedItems",
)  # fmt: skip
_LISTS: Final = ("anyOf", "oneOf", "allOf", "prefixItems")
_BY_KEY: Final = ("properties", "patternProperties", "dependentSchemas")
_OLDEST: Final = ("extends", "disallow", "type")  # of draft 3, where types may be schemas
OPEN: Final = "x-open"
"""True in the outermost schema: objects, lists and types are as open as the standard has them."""
_FORMATS: Final = {"host-name": "hostname", "ip-address": "ipv4"}  # of draft 3, as they are called since
REFUSED: Final = "$refused"  # why a schema is refused where it is used


def draft_of(schema: Any, otherwise: int | None = None) -> int | None:
    """The year or number of the draft that a schema names, None if nobody knows it; ``otherwise`` without."""
    named = schema.get("$schema") if isinstance(schema, dict) else None
    if not isinstance(named, str):
        return otherwise
    return _BY_ADDRESS.get(named.removesuffix("#"))


def id_of(schema: dict, draft: int | None) -> str | None:
    """The address that a schema gives itself."""
    if draft in (3, 4):
        found = schema.get("id")
    else:
        found = schema.get("$id")
    if not isinstance(found, str) or (draft is not None and draft <= 7 and "$ref" in schema):
        return None
    return found


def joined_address(base: str, reference: str) -> tuple[str, str]:
    """Where a reference leads that stands in a document of this base, and the fragment there."""
    try:
        uri, fragment = urldefrag(reference)
        return (urldefrag(urljoin(base, uri))[0] if uri else base), fragment
    except ValueError:  # no address
        return reference, ""


def below(schema: dict) -> Iterator[Any]:
    """What stands in a schema where schemas may stand."""
    for name, value in schema.items():
        if name in (*_ONE, *_LISTS, *_OLDEST):
            yield from value if isinstance(value, list) else (value,)
        elif name in (*_BY_KEY, "dependencies", "$defs", "definitions") and isinstance(value, dict):
            yield from value.values()


class Modern:
    """Makes schemas modern, and every ``$ref`` an address; ``address(ref, base)`` says how to write it."""

    def __init__(self, address: Callable[[str, str], str], *, is_open: bool) -> None:
        self._address = address
        self._is_open = is_open

    def schema(self, given: Any, base: str, draft: int | None) -> Any:
        """``given`` stands in a document of this base and draft."""
        if not isinstance(given, dict):
            return given
        draft = draft_of(given, draft)
        own = id_of(given, draft)
        if own is not None:
            base = joined_address(base, own)[0]
        if draft is not None and draft <= 7 and isinstance(given.get("$ref"), str):
            return {"$ref": self._address(given["$ref"], base)}  # whatever stands beside it is void
        schema = {name: self._part(name, value, base, draft) for name, value in given.items()}
        if isinstance(schema.get("$ref"), str):
            schema["$ref"] = self._address(schema["$ref"], base)
        for name in ("$dynamicRef", "$recursiveRef"):
            if name in schema:
                _as_reference(schema, name, lambda ref: self._address(ref, base))
        _bounds(schema)
        _items(schema, draft)
        _dependencies(schema)
        _required(schema)
        _oldest(schema, draft)
        _content(schema, draft)
        schema.pop(OPEN, None)
        if self._is_open:
            schema[OPEN] = True
        return schema

    def _part(self, name: str, value: Any, base: str, draft: int | None) -> Any:
        if name in (*_ONE, *_LISTS, *_OLDEST):
            if isinstance(value, list):
                return [self.schema(one, base, draft) for one in value]
            return self.schema(value, base, draft)
        if (name in _BY_KEY or name == "dependencies") and isinstance(value, dict):
            return {key: self.schema(one, base, draft) for key, one in value.items()}
        return value


def _as_reference(schema: dict, name: str, address: Callable[[str], str]) -> None:
    """A dynamic reference, which is a plain one where nothing else in the document has its anchor."""
    value = schema.pop(name)
    if not isinstance(value, str):
        schema[REFUSED] = f"{name} must be a string"
    elif "$ref" in schema:
        _and(schema, {"$ref": "dynamic:" + address(value)})
    else:
        schema["$ref"] = "dynamic:" + address(value)


def _and(schema: dict, *others: Any) -> None:
    """Add schemas that must be met too."""
    if not isinstance(schema.get("allOf", []), list):
        return  # refused when it is read
    schema["allOf"] = [*schema.get("allOf", []), *others]


def _bounds(schema: dict) -> None:
    """Drafts 3 and 4 say by a boolean whether the bound itself is left out."""
    for name, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if isinstance(schema.get(name), bool):
            is_exclusive = schema.pop(name)
            if is_exclusive and bound in schema:
                schema[name] = schema.pop(bound)


def _items(schema: dict, draft: int | None) -> None:
    rest = schema.pop("additionalItems", None)
    if draft != LATEST and isinstance(schema.get("items"), list) and "prefixItems" not in schema:
        schema["prefixItems"] = schema.pop("items")
        if rest is not None:
            schema["items"] = rest


def _dependencies(schema: dict) -> None:
    given = schema.get("dependencies")
    if not isinstance(given, dict):
        return
    del schema["dependencies"]
    for name, value in given.items():
        if isinstance(value, str):
            value = [value]
        into = "dependentRequired" if isinstance(value, list) else "dependentSchemas"
        there = schema.setdefault(into, {})
        if name in there:
            _and(schema, {into: {name: value}})
        elif isinstance(there, dict):
            schema[into] = there | {name: value}


def _required(schema: dict) -> None:
    """Draft 3 says in a property whether it is required."""
    properties = schema.get("properties")
    if not isinstance(properties, dict):
        return
    marked = [
        name for name, one in properties.items() if isinstance(one, dict) and one.pop("required!", False)
    ]
    if marked and isinstance(schema.get("required", []), list):
        schema["required"] = [*schema.get("required", []), *marked]


def _oldest(schema: dict, draft: int | None) -> None:
    if isinstance(schema.get("required"), bool):
        # of itself it says nothing; the schema that has this as a property takes it out
        schema["required!"] = schema.pop("required")
    if "divisibleBy" in schema and "multipleOf" not in schema:
        schema["multipleOf"] = schema.pop("divisibleBy")
    if draft == 3:
        if "extends" in schema:
            value = schema.pop("extends")
            _and(schema, *(value if isinstance(value, list) else [value]))
        if "disallow" in schema:
            value = schema.pop("disallow")
            _and(schema, {"not": _types({"type": value})})
        _types(schema)
        form = schema.get("format")
        if isinstance(form, str):
            schema["format"] = _FORMATS.get(form, form)
        if form == "color":
            schema[REFUSED] = "format 'color' is not supported in draft 3"


def _types(schema: dict) -> dict:
    """Types of draft 3: ``any``, and schemas among them."""
    value = schema.get("type")
    names = value if isinstance(value, list) else [value]
    if "any" in names:
        del schema["type"]
    elif any(isinstance(name, dict) for name in names):
        del schema["type"]
        _and(schema, {"anyOf": [one if isinstance(one, dict) else {"type": one} for one in names]})
    return schema


def _content(schema: dict, draft: int | None) -> None:
    """Encoded content, which draft 7 lets be checked, and later ones do not."""
    if schema.get("contentEncoding") == "base64" and "format" not in schema:
        schema["format"] = "base64"
    if draft == 7:
        for name in ("contentEncoding", "contentMediaType"):
            if schema.get(name, "base64") not in ("base64", "text/plain"):
                schema[REFUSED] = f"{name} says in draft 7 what a text must be, and is not supported"
