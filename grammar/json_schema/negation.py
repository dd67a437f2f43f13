"""What does not meet a schema, as options: each keyword that fails is one way not to meet it.

What cannot be told (the opposite of ``uniqueItems``, say) is left out: what is found never meets the schema,
but what does not meet it may be more.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

from ...errors import GrammarError
from .formats import FORMATS
from .keywords import check_keywords
from .kinds import ATOMS
from .options import Judge, declared, is_closed, leaf, none_of

_MAX_REFERENCES = 64
_MAX_ONE_OF = 12
_NUMBER = ["integer", "fraction"]
_OPPOSITE = {
    "minimum": "exclusiveMaximum",
    "maximum": "exclusiveMinimum",
    "exclusiveMinimum": "maximum",
    "exclusiveMaximum": "minimum",
}
_SIZES = {"Length": "string", "Items": "array", "Properties": "object"}


class Negations:
    """Works out negations; ``options`` and ``both`` are those of conjunctions."""

    def __init__(
        self,
        resolve: Callable[[str], Any],
        options: Callable[[Any, int], list[dict]],
        both: Callable[[list[dict], list[dict]], list[dict]],
    ) -> None:
        self._resolve = resolve
        self._positive = options
        self._both = both
        self.reasons: list[str] = []  # what was left out

    def options(self, schema: Any, references: int) -> list[dict]:
        """Options for what certainly does not meet ``schema``. Raises GrammarError if nothing can be told."""
        if isinstance(schema, bool):
            return [] if schema else [{}]
        if references > _MAX_REFERENCES:
            raise GrammarError("a not that leads back to itself with nothing around it")
        check_keywords(schema)
        left_out: list[str] = []
        found = list(self._applied(schema, references + 1, left_out))
        found += self._leaf(leaf(schema), left_out)
        self.reasons += left_out
        if not found and left_out:
            raise GrammarError(left_out[0])
        return [option | {"negated": True} for option in found]

    def _applied(self, schema: dict, references: int, left_out: list[str]) -> list[dict]:
        found: list[dict] = []
        ways: list[Callable[[], list[dict]]] = []

        def negative(part: Any) -> list[dict]:
            return self.options(part, references)

        def positive(part: Any) -> list[dict]:
            return self._positive(part, references)

        def broken(name: str, part: Any) -> list[dict]:
            return self._both([_there(name)], negative(part))

        if "$ref" in schema:
            ways.append(lambda: negative(self._resolve(schema["$ref"])))
        for name in ("const", "enum"):
            if name in schema:
                values = [schema[name]] if name == "const" else schema[name]
                found.append({"excluded": values})
        ways += [partial(negative, part) for part in schema.get("allOf", ())]
        if "anyOf" in schema:
            ways.append(lambda: self._all(map(negative, schema["anyOf"])))
        if "oneOf" in schema:
            ways.append(lambda: self._not_one(schema["oneOf"], negative, positive))
        if "not" in schema:
            ways.append(lambda: positive(schema["not"]))
        if "if" in schema:
            condition = schema["if"]
            ways.append(lambda: self._both(positive(condition), negative(schema.get("then", True))))
            ways.append(lambda: self._both(negative(condition), negative(schema.get("else", True))))
        for name, names in schema.get("dependentRequired", {}).items():
            found += [_there(name) | {"members": [[{other: False}, {}, None]]} for other in names]
        for name, part in schema.get("dependentSchemas", {}).items():
            ways.append(partial(broken, name, part))
        for name in ("unevaluatedProperties", "unevaluatedItems"):
            if schema.get(name, True) is not True:
                left_out.append(f"the opposite of {name} is not supported")
        for way in ways:
            try:
                found += way()
            except GrammarError as error:
                left_out.append(str(error))
        return found

    def _all(self, parts: Any) -> list[dict]:
        found: list[dict] = [{}]
        for part in parts:
            found = self._both(found, part)
        return found

    def _not_one(self, parts: list, negative: Callable, positive: Callable) -> list[dict]:
        """None of them, or two."""
        if len(parts) > _MAX_ONE_OF:
            raise GrammarError(f"the opposite of oneOf with more than {_MAX_ONE_OF} schemas is not supported")
        found = self._all(map(negative, parts))
        for one, other in itertools.combinations(parts, 2):
            found += self._both(positive(one), positive(other))
        return found

    def _leaf(self, option: dict, left_out: list[str]) -> list[dict]:
        found: list[dict] = []
        if "type" in option:
            found.append({"type": [one for one in ATOMS if one not in option["type"]]})
        found += [{"type": _NUMBER, _OPPOSITE[name]: option[name]} for name in _OPPOSITE if name in option]
        if "multipleOf" in option:
            if option["multipleOf"] == 1:
                found.append({"type": ["fraction"]})
            else:
                left_out.append("the opposite of multipleOf is not supported")
        for end, kind in _SIZES.items():
            if option.get(f"min{end}", 0) > 0:
                found.append({"type": [kind], f"max{end}": option[f"min{end}"] - 1})
            if f"max{end}" in option:
                found.append({"type": [kind], f"min{end}": option[f"max{end}"] + 1})
        found += [{"type": ["string"], "no_pattern": [one]} for one in option.get("pattern", ())]
        found += [
            {"type": ["string"], "no_format": [one]} for one in option.get("format", ()) if one in FORMATS
        ]
        return [
            one
            for one in found + _items(option, left_out) + _members(option, left_out)
            if one.get("type") != []
        ]

    def for_option(self, negatives: list[dict], option: dict, judge: Judge) -> list[dict]:
        """``negatives`` with what stands for *a property beyond these* put in terms of an option's own."""
        found = []
        for negative in negatives:
            if "beyond" not in negative:
                found.append(negative)
                continue
            if len(negative["beyond"]) > 1:
                self.reasons.append("the opposite of additionalProperties at two places is not supported")
                continue
            [[names, patterns, schema]] = negative["beyond"]
            rest = {name: value for name, value in negative.items() if name != "beyond"}
            for name in dict.fromkeys([*declared(option), *option.get("required", ())]):
                if name not in names and all(judge.found(pattern, name) is False for pattern in patterns):
                    shape = [{name: none_of(schema)}, {}, None]
                    found.append(
                        rest | {"required": [name]} | ({} if schema is False else {"members": [shape]})
                    )
            if not is_closed(option):
                self.reasons.append(
                    "the opposite of additionalProperties is supported for declared properties only"
                )
        return found


def _there(name: str) -> dict:
    return {"type": ["object"], "required": [name]}


def _items(option: dict, left_out: list[str]) -> list[dict]:
    found: list[dict] = []
    first = option.get("prefixItems", [])
    for i, one in enumerate(first):
        if none_of(one) is not False:
            items = {"prefixItems": [True] * i + [none_of(one)], "items": True}
            found.append({"type": ["array"], "minItems": i + 1} | items)
    rest = option.get("items", True)
    if rest is False:
        found.append({"type": ["array"], "minItems": len(first) + 1})
    elif none_of(rest) is not False:
        if first:
            left_out.append("the opposite of items behind prefixItems is not supported")
        else:
            found.append({"type": ["array"], "contains": [[none_of(rest), 1, None]]})
    if option.get("uniqueItems"):
        left_out.append("the opposite of uniqueItems is not supported")
    for wanted, least, most in option.get("contains", ()):
        if least == 1:
            found.append({"type": ["array"], "items": none_of(wanted)})
        elif least:
            found.append({"type": ["array"], "contains": [[wanted, 0, least - 1]]})
        if most is not None:
            found.append({"type": ["array"], "contains": [[wanted, most + 1, None]]})
    return found


def _members(option: dict, left_out: list[str]) -> list[dict]:
    found = [
        {"type": ["object"], "members": [[{name: False}, {}, None]]} for name in option.get("required", ())
    ]
    for properties, patterns, others in option.get("members", ()):
        for name, one in properties.items():
            opposite = none_of(one)
            if opposite is not False:
                shape = [] if opposite is True else [[{name: opposite}, {}, None]]
                found.append(_there(name) | ({"members": shape} if shape else {}))
        if any(one is not True and one != {} for one in patterns.values()):
            left_out.append("the opposite of patternProperties is not supported")
        if others is not None and none_of(others) is not False:
            found.append({"type": ["object"], "beyond": [[list(properties), list(patterns), others]]})
    for schema in option.get("propertyNames", ()):
        if schema is not True:
            left_out.append("the opposite of propertyNames is not supported")
    return found
