"""Walks a schema and makes rules of it; the parts of them are made next door, type by type."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

from ...errors import GrammarError
from ..budget import Budget
from ..tree import Node, Rule, Rules, choice, is_unguarded, optional, productive, sequence, word
from .arrays import distinct_items, items
from .keywords import APPLIERS, OF_TYPE, check_keywords, constraining, is_number, type_names
from .kinds import check_apart, key, types_of
from .merge import Conjunctions
from .numbers import any_number, integers, numbers
from .objects import list_of, members
from .strings import string, texts, texts_except
from .tokens import (
    BEGIN_LIST,
    BEGIN_OBJECT,
    END_LIST,
    END_OBJECT,
    MEMBER,
    constant,
    member_name,
    number,
)

_MAXITEMS = 10_000
_SHARED_SIZE = 12  # nodes: what is larger and used more than once becomes a rule
_MAX_DEPTH = 64
_FEW = {"boolean": (True, False), "null": (None,)}


def compile_schema(text: str, budget: Budget | None = None) -> Rules:
    """The rules of a JSON schema, written as JSON. Raises GrammarError for what cannot be enforced."""
    try:
        schema = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise GrammarError(f"json_schema is not valid JSON: {error}.") from None
    try:
        return _Compiler(schema, budget or Budget()).rules()
    except RecursionError:
        raise GrammarError("json_schema is nested too deeply.") from None


class _Compiler:
    """Walks a schema; ``path`` says where, as a JSON pointer, for messages."""

    def __init__(self, schema: Any, budget: Budget) -> None:
        self._schema = schema
        self._budget = budget
        self._conjunctions = Conjunctions(self._resolve, budget)
        self._rules: Rules = {}
        self._targets: dict[str, str] = {}  # rule of each $ref, and of each conjunction as JSON
        self._shared: dict[Node, str] = {}
        self._depth = 0

    def rules(self) -> Rules:
        root = self._node(self._schema, "#")
        rules = productive({"root": root} | self._rules, self._budget)
        if "root" not in rules:
            raise GrammarError(
                "json_schema describes nothing finite: it requires itself, or what no value can be."
            )
        if is_unguarded(rules, self._budget):
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
        self._budget.spend(5, path)
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
        self._at(path, check_keywords, schema, inside=path != "#")
        node = self._applied(schema, path) or self._typed(schema, path)
        self._depth -= 1
        return node

    def _applied(self, schema: dict, path: str) -> Node | None:
        """A schema that is made of others or of values; None if it is none of those."""
        given = [name for name in constraining(schema) if name in APPLIERS]
        if not given:
            return None
        name, value = given[0], schema[given[0]]
        others = set(constraining(schema)) - {name}
        if others - {"type"} or (others and name not in ("const", "enum")) or name == "allOf":
            return self._conjunction(schema, path)
        if name == "$ref":
            return self._reference(value, path)
        if name in ("const", "enum"):
            return self._values([value] if name == "const" else value, schema.get("type"), f"{path}/{name}")
        if not isinstance(value, list) or not value:
            raise self._invalid(path, f"{name} must be a list of schemas with at least one")
        if name == "oneOf":
            self._at(path, check_apart, [[one] for one in value], self._resolve)
        return choice(*(self._node(one, f"{path}/{name}/{i}") for i, one in enumerate(value)))

    def _conjunction(self, schema: dict, path: str) -> Node:
        """What must meet several schemas at once; a rule, as these may lead back to themselves."""
        text = json.dumps(schema)
        if text not in self._targets:
            name = self._targets[text] = f"all_{len(self._targets)}"
            options = [self._option(option, path) for option in self._options(schema, path)]
            self._rules[name] = choice(*options) if options else Rule("nothing")
        return Rule(self._targets[text])

    def _options(self, schema: Any, path: str) -> list[dict]:
        return self._at(path, self._conjunctions.options, schema, inside=path != "#")

    def _option(self, option: dict, path: str) -> Node:
        """A schema of a conjunction that was worked out."""
        if "enum" not in option:
            return self._typed(option, path)
        values = self._met(option, path)
        return self._constants(values, path) if values else Rule("nothing")

    def _met(self, option: dict, path: str) -> list:
        """The values of its ``enum`` that meet the rest of a schema."""
        rest = {name: value for name, value in option.items() if name != "enum"}
        if not rest:
            return option["enum"]
        self._typed(rest, path)  # raises for what jsonschema would stumble over
        from jsonschema import Draft202012Validator

        validator = Draft202012Validator(
            self._schema, format_checker=Draft202012Validator.FORMAT_CHECKER
        ).evolve(schema=rest)
        return [value for value in option["enum"] if validator.is_valid(value)]

    def _reference(self, pointer: Any, path: str) -> Node:
        target = self._at(path, self._resolve, pointer)
        if pointer not in self._targets:
            name = self._targets[pointer] = f"ref_{len(self._targets)}"
            self._rules[name] = self._node(target, pointer)
        return Rule(self._targets[pointer])

    def _resolve(self, pointer: Any) -> Any:
        if not isinstance(pointer, str):
            raise GrammarError("$ref must be a string")
        if pointer != "#" and not pointer.startswith("#/"):
            raise GrammarError(f"$ref {pointer!r} is not supported: only '#' and '#/...' are")
        target = self._schema
        for part in pointer.split("/")[1:]:
            name = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(target, list) and name.isdecimal() and int(name) < len(target):
                target = target[int(name)]
            elif isinstance(target, dict) and name in target:
                target = target[name]
            else:
                raise GrammarError(f"$ref {pointer!r} leads nowhere")
        return target

    def _values(self, values: Any, types: Any, path: str) -> Node:
        if not isinstance(values, list) or not values:
            raise self._invalid(path, "enum must be a list with at least one value")
        allowed = None if types is None else self._at(path, type_names, types)
        kept = [value for value in values if allowed is None or types_of(value) & set(allowed)]
        if not kept:
            raise self._invalid(path, f"no value is of type {types}")
        return self._constants(kept, path)

    def _constants(self, values: list, path: str) -> Node:
        return choice(*(self._at(path, constant, one) for one in values))

    # ---- by type -----------------------------------------------------------------------------------

    def _typed(self, schema: dict, path: str) -> Node:
        given = [name for name in constraining(schema) if name != "type"]
        if "type" in schema:
            types = self._at(path, type_names, schema["type"])
        elif not given:
            return self._anything()
        else:
            types = [
                t for t in ("object", "array", "string", "number") if any(n in OF_TYPE[t] for n in given)
            ]
        make: dict[str, Callable[[dict, str], Node]] = {
            "string": self._string,
            "integer": self._integer,
            "number": self._number,
            "array": self._array,
            "object": self._object,
            "boolean": lambda *_: choice(word("true"), word("false")),
            "null": lambda *_: word("null"),
        }
        return choice(*(make[t](schema, path) for t in types))

    def _string(self, schema: dict, path: str) -> Node:
        least, most = self._range(schema, "minLength", "maxLength", path)
        pattern, form = schema.get("pattern"), schema.get("format")
        for name in ("pattern", "format"):
            if not isinstance(schema.get(name, ""), str):
                raise self._invalid(path, f"{name} must be a string")
        return string(self._at(path, texts, least, most, pattern, form))

    def _at(self, path: str, make: Callable[..., Node], *args: Any, **options: Any) -> Node:
        """``make(...)``, its errors with the place where they belong."""
        try:
            return make(*args, **options)
        except GrammarError as error:
            raise self._unsupported(path, str(error).rstrip(".")) from None

    def _range(self, schema: dict, low: str, high: str, path: str) -> tuple[int, int | None]:
        for name in (low, high):
            value = schema.get(name, 0)
            if not is_number(value) or value != int(value) or value < 0:
                raise self._invalid(path, f"{name} must be a whole number, at least 0, got {value!r}")
        least, most = int(schema.get(low, 0)), int(schema[high]) if high in schema else None
        if most is not None and least > most:
            raise self._invalid(path, f"{low} {least} is above {high} {most}")
        if max(least, most or 0) > _MAXITEMS:
            raise self._unsupported(path, f"{low} or {high} above {_MAXITEMS} is not supported")
        return least, most

    def _bounds(self, schema: dict, path: str) -> tuple[Decimal | None, Decimal | None, bool, bool]:
        """(lowest, highest, whether each is left out itself)."""
        found: dict[str, Decimal] = {}
        for name in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
            if name not in schema:
                continue
            value = schema[name]
            if not is_number(value):
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
        multiple = schema.get("multipleOf", 1)
        if type(multiple) is not int or multiple < 1:
            raise self._unsupported(
                path, f"multipleOf {multiple!r} is not supported: only whole numbers from 1 are"
            )
        return number(self._at(path, integers, least, most, None if multiple == 1 else multiple))

    def _number(self, schema: dict, path: str) -> Node:
        if "multipleOf" in schema:
            if type(schema["multipleOf"]) is int:
                return self._integer(schema, path)
            raise self._unsupported(path, "multipleOf is supported for integers only")
        low, high, open_low, open_high = self._bounds(schema, path)
        return number(self._at(path, numbers, low, high, open_low=open_low, open_high=open_high))

    def _array(self, schema: dict, path: str) -> Node:
        least, most = self._range(schema, "minItems", "maxItems", path)
        first = schema.get("prefixItems", [])
        if not isinstance(first, list):
            raise self._invalid(path, "prefixItems must be a list of schemas")
        rest = schema.get("items", not first)  # a declared tuple is closed unless it says otherwise
        if isinstance(rest, list):
            raise self._unsupported(path, "items as a list is not supported: use prefixItems")
        if not isinstance(schema.get("uniqueItems", False), bool):
            raise self._invalid(path, "uniqueItems must be true or false")
        if schema.get("uniqueItems") and most != 1:
            inner = self._distinct(first, rest, least, most, path)
        else:
            nodes = [self._node(one, f"{path}/prefixItems/{i}") for i, one in enumerate(first)]
            more = None if rest is False else self._node(rest, f"{path}/items")
            inner = self._at(path, items, nodes, more, least, most)
        return sequence(BEGIN_LIST, inner, END_LIST)

    def _distinct(self, first: list, rest: Any, least: int, most: int | None, path: str) -> Node:
        if first:
            raise self._unsupported(path, "uniqueItems together with prefixItems is not supported")
        values: dict[str, Node] = {}
        for option in self._options(rest, f"{path}/items"):
            if "enum" in option:
                found = self._met(option, path)
            else:
                types = self._at(path, type_names, option.get("type", list(OF_TYPE)))
                if not set(types) <= set(_FEW):
                    raise self._unsupported(
                        path, "uniqueItems is supported for enum, const, boolean and null only: leave it out"
                    )
                found = [one for name in types for one in _FEW[name]]
            values |= {key(one): self._at(path, constant, one) for one in found}
        return self._at(path, distinct_items, list(values.values()), least, most, self._share)

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
            declared[name] = sequence(self._at(path, member_name, name), node)
        if declared and extra is not None and "patternProperties" not in schema:
            extra = sequence(string(texts_except(declared)), MEMBER, value)
        least, most = self._range(schema, "minProperties", "maxProperties", path)
        inner = self._at(path, members, declared, required, extra, least, most, self._share)
        return sequence(BEGIN_OBJECT, inner, END_OBJECT)

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
            return sequence(string(texts()), MEMBER, value), value
        if names is False:
            return None, None
        return sequence(self._names(names, f"{path}/propertyNames"), MEMBER, value), value

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
        return sequence(key, MEMBER, value), value

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
            member = sequence(string(texts()), MEMBER, value)
            simple = [string(texts()), number(any_number()), *map(word, ("true", "false", "null"))]
            many = [
                (list_of(value), BEGIN_LIST, END_LIST),
                (list_of(member), BEGIN_OBJECT, END_OBJECT),
            ]
            nested = [sequence(begin, optional(inner), end) for inner, begin, end in many]
            self._rules["any"] = choice(*simple, *nested)
        return Rule("any")


def _size(node: Node, limit: int) -> int:
    """Nodes in a tree, counted up to ``limit``."""
    total = 1
    for part in node if isinstance(node, tuple) else ():
        if isinstance(part, tuple) and total < limit:
            total += _size(part, limit - total)
    return total
