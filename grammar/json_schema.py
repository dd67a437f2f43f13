"""JSON Schema as rules: what is enforced is enforced exactly, and everything else is refused by name.

Every text of the result is a document that the schema accepts, in one form: as ``json.dumps`` writes it
(``", "`` and ``": "``), declared properties in their order. Where a schema leaves more open than a model
needs, less is generated: objects that declare ``properties`` get no others unless ``additionalProperties``
says so, numbers have at most 15 digits, formats their common forms. Keywords that do not apply to a value's
type are without effect, as the standard has it; unknown ones are refused: a misspelt limit would be none.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

from ..errors import GrammarError, unknown_option
from .json_kinds import tell_apart, types_of
from .json_numbers import any_number, integers, numbers
from .json_objects import ITEM, list_of, members
from .json_strings import string, texts, texts_except
from .tree import (
    EMPTY,
    Node,
    Repeat,
    Rule,
    Rules,
    choice,
    is_unguarded,
    literal,
    optional,
    productive,
    sequence,
)

_ANNOTATIONS = frozenset(
    (
        "title",
        "description",
        "default",
        "examples",
        "example",
        "deprecated",
        "readOnly",
        "writeOnly",
        "$comment",
    )
    + ("$schema", "$defs", "definitions", "discriminator", "x-guidance")
)
_OF_TYPE = {
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
_APPLIERS = ("$ref", "const", "enum", "anyOf", "oneOf", "allOf")
_KNOWN = frozenset(_APPLIERS) | _ANNOTATIONS | {"type", "$id", *sum(_OF_TYPE.values(), ())}
_REFUSED = frozenset(
    (
        "not",
        "if",
        "then",
        "else",
        "contains",
        "minContains",
        "maxContains",
        "dependentSchemas",
        "dependencies",
    )
    + ("dependentRequired", "unevaluatedProperties", "unevaluatedItems", "additionalItems", "$dynamicRef")
    + ("$recursiveRef", "$anchor", "$dynamicAnchor", "contentEncoding", "contentMediaType", "contentSchema")
)
_MAXITEMS = 10_000
_SHARED_SIZE = 12  # nodes: what is larger and used more than once becomes a rule
_MAX_DEPTH = 64


def compile_schema(text: str) -> Rules:
    """The rules of a JSON schema, written as JSON. Raises GrammarError for what cannot be enforced."""
    try:
        schema = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise GrammarError(f"json_schema is not valid JSON: {error}.") from None
    try:
        return _Compiler(schema).rules()
    except RecursionError:
        raise GrammarError("json_schema is nested too deeply.") from None


class _Compiler:
    """Walks a schema; ``path`` says where, as a JSON pointer, for messages."""

    def __init__(self, schema: Any) -> None:
        self._schema = schema
        self._rules: Rules = {}
        self._targets: dict[str, str] = {}  # rule of each $ref
        self._shared: dict[Node, str] = {}
        self._depth = 0

    def rules(self) -> Rules:
        root = self._node(self._schema, "#")
        rules = productive({"root": root} | self._rules)
        if "root" not in rules:
            raise GrammarError("json_schema describes nothing finite: it requires itself, or what is false.")
        if is_unguarded(rules):
            raise GrammarError("json_schema has a $ref that leads back to itself with nothing around it.")
        return rules

    # ---- errors ------------------------------------------------------------------------------------

    def _unsupported(self, path: str, what: str) -> GrammarError:
        return GrammarError(
            f"json_schema at {path}: {what}, so the request is refused rather than run without that limit."
        )

    def _invalid(self, path: str, what: str) -> GrammarError:
        return GrammarError(f"json_schema at {path}: {what}.")

    # ---- any schema --------------------------------------------------------------------------------

    def _node(self, schema: Any, path: str) -> Node:
        if schema is True:
            return self._anything()
        if schema is False:
            return Rule("nothing")  # which no rule describes: whatever needs it is pruned
        if not isinstance(schema, dict):
            raise self._invalid(
                path, f"a schema must be an object or a boolean, got {json.dumps(schema)[:40]}"
            )
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise self._unsupported(
                path, f"more than {_MAX_DEPTH} schemas within each other are not supported"
            )
        self._check_names(schema, path)
        node = self._applied(schema, path) or self._typed(schema, path)
        self._depth -= 1
        return node

    def _check_names(self, schema: dict, path: str) -> None:
        for name in schema:
            if name in _REFUSED:
                raise self._unsupported(path, f"{name} is not supported")
            if name not in _KNOWN and not name.startswith("x-"):
                problem = str(unknown_option("keyword", name, _KNOWN)).split(" Known")[0]
                raise GrammarError(
                    f"json_schema at {path}: {problem} It is refused: a misspelt limit would be none."
                )
        if schema.get("uniqueItems"):
            raise self._unsupported(path, "uniqueItems is not supported")
        if "$id" in schema and path != "#":
            raise self._unsupported(path, "$id inside a schema is not supported")

    def _applied(self, schema: dict, path: str) -> Node | None:
        """A schema that is made of others or of values; None if it is none of those."""
        given = [name for name in _APPLIERS if name in schema]
        if not given:
            return None
        name, others = given[0], set(schema) - _ANNOTATIONS - {given[0], "$id"}
        if name in ("const", "enum"):
            others -= {"type"}
        if others:
            raise self._unsupported(
                path,
                f"{name} together with {', '.join(sorted(others))} is not supported: merge them into one",
            )
        value = schema[name]
        if name == "$ref":
            return self._reference(value, path)
        if name in ("const", "enum"):
            return self._values([value] if name == "const" else value, schema.get("type"), f"{path}/{name}")
        if not isinstance(value, list) or not value:
            raise self._invalid(path, f"{name} must be a list of schemas with at least one")
        if name == "allOf" and len(value) > 1:
            raise self._unsupported(path, "allOf of several schemas is not supported: merge them into one")
        if name == "oneOf" and not tell_apart(value, lambda pointer: self._resolve(pointer, path)):
            raise self._unsupported(
                path,
                "oneOf is supported where types, values or a constant property tell the options apart;"
                " here they do not: use anyOf",
            )
        return choice(*(self._node(one, f"{path}/{name}/{i}") for i, one in enumerate(value)))

    def _reference(self, pointer: Any, path: str) -> Node:
        if not isinstance(pointer, str):
            raise self._invalid(path, "$ref must be a string")
        if pointer not in self._targets:
            target = self._resolve(pointer, path)
            name = self._targets[pointer] = f"ref_{len(self._targets)}"
            self._rules[name] = self._node(target, pointer)
        return Rule(self._targets[pointer])

    def _resolve(self, pointer: str, path: str) -> Any:
        if pointer != "#" and not pointer.startswith("#/"):
            raise self._unsupported(path, f"$ref {pointer!r} is not supported: only '#' and '#/...' are")
        target = self._schema
        for part in pointer.split("/")[1:]:
            key = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(target, list) and key.isdecimal() and int(key) < len(target):
                target = target[int(key)]
            elif isinstance(target, dict) and key in target:
                target = target[key]
            else:
                raise self._invalid(path, f"$ref {pointer!r} leads nowhere")
        return target

    def _values(self, values: Any, types: Any, path: str) -> Node:
        if not isinstance(values, list) or not values:
            raise self._invalid(path, "enum must be a list with at least one value")
        allowed = None if types is None else self._types(types, path)
        kept = [value for value in values if allowed is None or types_of(value) & set(allowed)]
        if not kept:
            raise self._invalid(path, f"no value is of type {types}")
        return choice(*(literal(self._dump(value, path)) for value in kept))

    def _dump(self, value: Any, path: str) -> str:
        try:
            text = json.dumps(value, ensure_ascii=False, allow_nan=False)
            text.encode()
        except (ValueError, UnicodeEncodeError):
            raise self._unsupported(path, "a number or character that JSON cannot carry") from None
        return text.replace("\x7f", "\\u007f")

    # ---- by type -----------------------------------------------------------------------------------

    def _types(self, types: Any, path: str) -> list[str]:
        types = [types] if isinstance(types, str) else types
        if (
            not isinstance(types, list)
            or not types
            or not all(isinstance(t, str) and t in _OF_TYPE for t in types)
        ):
            raise self._invalid(
                path, f"type must be of {', '.join(_OF_TYPE)}, or a list of those, got {types!r}"
            )
        return types

    def _typed(self, schema: dict, path: str) -> Node:
        given = [name for name in schema if name not in _ANNOTATIONS and name not in ("type", "$id")]
        if "type" in schema:
            types = self._types(schema["type"], path)
        elif not given:
            return self._anything()
        else:
            types = [
                t for t in ("object", "array", "string", "number") if any(n in _OF_TYPE[t] for n in given)
            ]
        make: dict[str, Callable[[dict, str], Node]] = {
            "string": self._string,
            "integer": self._integer,
            "number": self._number,
            "array": self._array,
            "object": self._object,
            "boolean": lambda *_: choice(literal("true"), literal("false")),
            "null": lambda *_: literal("null"),
        }
        return choice(*(make[t](schema, path) for t in types))

    def _string(self, schema: dict, path: str) -> Node:
        least, most = self._range(schema, "minLength", "maxLength", path)
        pattern, form = schema.get("pattern"), schema.get("format")
        for name, value in (("pattern", pattern), ("format", form)):
            if value is not None and not isinstance(value, str):
                raise self._invalid(path, f"{name} must be a string")
        return string(self._at(path, texts, least, most, pattern, form))

    def _at(self, path: str, make: Callable[..., Node], *args: Any, **options: Any) -> Node:
        """``make(...)``, its errors with the place where they belong."""
        try:
            return make(*args, **options)
        except GrammarError as error:
            raise self._unsupported(path, str(error).rstrip(".")) from None

    def _range(self, schema: dict, low: str, high: str, path: str) -> tuple[int, int | None]:
        least, most = schema.get(low, 0), schema.get(high)
        for name, value in ((low, least), (high, most)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
                raise self._invalid(path, f"{name} must be a whole number, got {value!r}")
            if value is not None and (value != int(value) or value < 0):
                raise self._invalid(path, f"{name} must be a whole number, at least 0, got {value!r}")
        least, most = int(least), None if most is None else int(most)
        if most is not None and least > most:
            raise self._invalid(path, f"{low} {least} is above {high} {most}")
        if max(least, most or 0) > _MAXITEMS:
            raise self._unsupported(path, f"{low} or {high} above {_MAXITEMS} is not supported")
        return least, most

    def _bounds(self, schema: dict, path: str) -> tuple[Decimal | None, Decimal | None, bool, bool]:
        """(lowest, highest, whether each is left out itself)."""
        found: dict[str, Decimal] = {}
        for name in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
            value = schema.get(name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise self._invalid(path, f"{name} must be a number, got {value!r}")
            if abs(value) >= 10**15 or (value and abs(value) < 1e-9):
                raise self._unsupported(
                    path, f"{name} {value!r} is too large or too close to 0 to be supported"
                )
            found[name] = Decimal(repr(value))
        low, high = found.get("minimum"), found.get("maximum")
        above, below = found.get("exclusiveMinimum"), found.get("exclusiveMaximum")
        open_low = above is not None and (low is None or above >= low)
        open_high = below is not None and (high is None or below <= high)
        return above if open_low else low, below if open_high else high, open_low, open_high

    def _integer(self, schema: dict, path: str) -> Node:
        low, high, open_low, open_high = self._bounds(schema, path)
        least = None if low is None else math.floor(low) + 1 if open_low else math.ceil(low)
        most = None if high is None else math.ceil(high) - 1 if open_high else math.floor(high)
        multiple = schema.get("multipleOf")
        if multiple is not None and (type(multiple) is not int or multiple < 1):
            raise self._unsupported(
                path, f"multipleOf {multiple!r} is not supported: only whole numbers from 1 are"
            )
        return self._at(path, integers, least, most, None if multiple == 1 else multiple)

    def _number(self, schema: dict, path: str) -> Node:
        if "multipleOf" in schema:
            if type(schema["multipleOf"]) is int:
                return self._integer(schema, path)
            raise self._unsupported(path, "multipleOf is supported for integers only")
        low, high, open_low, open_high = self._bounds(schema, path)
        return self._at(path, numbers, low, high, open_low=open_low, open_high=open_high)

    def _array(self, schema: dict, path: str) -> Node:
        least, most = self._range(schema, "minItems", "maxItems", path)
        first = schema.get("prefixItems", [])
        if not isinstance(first, list):
            raise self._invalid(path, "prefixItems must be a list of schemas")
        rest = schema.get("items", not first)  # a declared tuple is closed unless it says otherwise
        if isinstance(rest, list):
            raise self._unsupported(path, "items as a list is not supported: use prefixItems")
        nodes = [self._node(one, f"{path}/prefixItems/{i}") for i, one in enumerate(first)]
        if most is not None:
            nodes = nodes[:most]
        more = None if rest is False else self._node(rest, f"{path}/items")
        room = None if most is None else most - len(nodes)
        tail: Node = EMPTY  # what follows the declared items
        if more is not None and room != 0:
            wanted = max(least - len(nodes), 0)
            tail = Repeat(sequence(ITEM, more), wanted, room)
            if not nodes:
                inner = sequence(more, Repeat(sequence(ITEM, more), max(wanted - 1, 0), room and room - 1))
                return sequence(literal("["), inner if least else optional(inner), literal("]"))
        elif least > len(nodes):
            raise self._invalid(path, f"minItems {least} is more than the {len(nodes)} items there can be")
        for i in reversed(range(len(nodes))):
            node = sequence(ITEM, nodes[i], tail) if i else sequence(nodes[i], tail)
            tail = node if i < least else optional(node)
        return sequence(literal("["), tail, literal("]"))

    # ---- objects -----------------------------------------------------------------------------------

    def _object(self, schema: dict, path: str) -> Node:
        properties = schema.get("properties", {})
        required = schema.get("required", [])
        if not isinstance(properties, dict):
            raise self._invalid(path, "properties must be an object of schemas")
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            raise self._invalid(path, "required must be a list of names")
        extra, value = self._extra(schema, properties, path)
        declared: dict[str, Node] = {}
        for name in dict.fromkeys((*properties, *required)):
            if name in properties:
                node = self._node(properties[name], f"{path}/properties/{name}")
            else:
                node = self._undeclared(schema, value, name, path)
            declared[name] = sequence(literal(f"{self._dump(name, path)}: "), node)
        if declared and extra is not None and "patternProperties" not in schema:
            extra = sequence(string(texts_except(declared)), literal(": "), value)
        least, most = self._range(schema, "minProperties", "maxProperties", path)
        inner = self._at(path, members, declared, required, extra, least, most, self._share)
        return sequence(literal("{"), inner, literal("}"))

    def _undeclared(self, schema: dict, value: Node | None, name: str, path: str) -> Node:
        """A required property that ``properties`` does not have."""
        if "patternProperties" in schema or schema.get("additionalProperties") is False:
            raise self._unsupported(path, f"required property {name!r} is not among properties")
        return self._anything() if value is None else value

    def _extra(self, schema: dict, properties: dict, path: str) -> tuple[Node | None, Node | None]:
        """A member beyond the declared ones, and its value; None if there are none."""
        patterns, names = schema.get("patternProperties"), schema.get("propertyNames")
        others = schema.get("additionalProperties")
        if names is not None and (properties or schema.get("required") or patterns):
            raise self._unsupported(path, "propertyNames together with declared properties is not supported")
        if patterns:
            return self._by_pattern(patterns, properties, others, path)
        if others is None:
            others = not properties
        if others is False:
            return None, None
        value = self._node(others, f"{path}/additionalProperties")
        if names is None:
            return sequence(string(texts()), literal(": "), value), value
        if names is False:
            return None, None
        return sequence(self._names(names, f"{path}/propertyNames"), literal(": "), value), value

    def _names(self, names: Any, path: str) -> Node:
        if isinstance(names, dict) and names.get("type", "string") == "string":
            return self._node(names | {"type": "string"}, path)
        return self._node(names, path) if names is not True else string(texts())

    def _by_pattern(self, patterns: Any, properties: dict, others: Any, path: str) -> tuple[Node, Node]:
        if not isinstance(patterns, dict) or len(patterns) != 1:
            raise self._unsupported(path, "patternProperties with other than one pattern is not supported")
        if others not in (None, False):
            raise self._unsupported(
                path, "patternProperties together with additionalProperties is not supported"
            )
        [(pattern, schema)] = patterns.items()
        key = string(self._at(f"{path}/patternProperties", texts, pattern=pattern))
        if any(re.search(pattern, name) for name in properties):
            raise self._unsupported(
                path, f"a declared property matches the pattern {pattern!r}, which is not supported"
            )
        value = self._node(schema, f"{path}/patternProperties/{pattern}")
        return sequence(key, literal(": "), value), value

    def _share(self, node: Node) -> Node:
        """A rule for a large node that is used several times."""
        if _size(node, _SHARED_SIZE) < _SHARED_SIZE:
            return node
        if node not in self._shared:
            name = self._shared[node] = f"part_{len(self._shared)}"
            self._rules[name] = node
        return Rule(self._shared[node])

    def _anything(self) -> Node:
        if "any" not in self._rules:
            value = Rule("any")
            member = sequence(string(texts()), literal(": "), value)
            simple = [string(texts()), any_number(), *map(literal, ("true", "false", "null"))]
            many = [(list_of(value), "[]"), (list_of(member), "{}")]
            nested = [sequence(literal(ends[0]), optional(inner), literal(ends[1])) for inner, ends in many]
            self._rules["any"] = choice(*simple, *nested)
        return Rule("any")


def _size(node: Node, limit: int) -> int:
    """Nodes in a tree, counted up to ``limit``."""
    total = 1
    for part in node if isinstance(node, tuple) else ():
        if isinstance(part, tuple) and total < limit:
            total += _size(part, limit - total)
    return total
