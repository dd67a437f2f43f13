"""Schemas that a value must meet together, as options of which it must meet one.

``allOf``, and keywords beside ``$ref``, ``anyOf``, ``oneOf`` or ``enum``, are conjunctions. A grammar knows
choices but no conjunctions, so they are worked out here, keyword by keyword: bounds become the tighter ones,
``anyOf`` is multiplied out, ``if`` is two cases, ``oneOf`` is each of its schemas without the others. Schemas
below the top (of properties and items) are put under an ``allOf`` of their own, to be worked out when
somebody gets there: so recursive ones come to an end.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from ...errors import GrammarError
from ..budget import Budget
from .keywords import check_keywords
from .kinds import key
from .negation import Negations
from .options import Judge, all_of, declared, is_closed, leaf, merge

_MAX_OPTIONS = 1024
_MAX_PRODUCTS = 200_000  # in all: pairs of options that were merged
_MAX_REFERENCES = 64


class Conjunctions:
    """Works out conjunctions; ``resolve`` follows a ``$ref``."""

    def __init__(self, resolve: Callable[[str], Any], judge: Judge, budget: Budget) -> None:
        self._resolve = resolve
        self._judge = judge
        self._budget = budget
        self._negations = Negations(resolve, self.options, self._both)
        self._products = 0

    def options(self, schema: Any, references: int = 0) -> list[dict]:
        """What a value of a schema must be one of; possibly nothing. Raises GrammarError."""
        if isinstance(schema, bool):
            return [{}] if schema else []
        if references > _MAX_REFERENCES:
            raise GrammarError("a $ref that leads back to itself with nothing around it")
        self._budget.spend(5, "a conjunction of schemas")
        check_keywords(schema)

        def inner(part: Any) -> list[dict]:
            return self.options(part, references + 1)

        found = self._both([{}], [leaf(schema)])
        if "$ref" in schema:
            found = self._both(found, inner(self._resolve(schema["$ref"])))
        if "const" in schema:
            found = self._both(found, [{"enum": [schema["const"]]}])
        if "enum" in schema:
            found = self._both(found, [{"enum": schema["enum"]}])
        for part in schema.get("allOf", ()):
            found = self._both(found, inner(part))
        if "anyOf" in schema:
            found = self._both(found, list(itertools.chain(*map(inner, schema["anyOf"]))))
        if "not" in schema:
            found = self._without(found, schema["not"], references)
        if "if" in schema:
            found = self._cases(found, schema, references)
        for name, names in schema.get("dependentRequired", {}).items():
            there = {"type": ["object"], "required": list(dict.fromkeys([name, *names]))}
            found = self._both(found, [_absent(name), there])
        for name, part in schema.get("dependentSchemas", {}).items():
            met = self._both([{"type": ["object"], "required": [name]}], inner(part))
            found = self._both(found, [_absent(name), *met])
        if "oneOf" in schema:  # last: what stands beside it helps to tell them apart
            found = self._one_of(found, schema["oneOf"], references)
        return self._unevaluated(found, schema)

    def are_apart(self, parts: list) -> bool:
        """Whether no value can be of two of these schemas."""
        options = [self.options(part, 1) for part in parts]
        return not any(self._both(one, other) for one, other in itertools.combinations(options, 2))

    def _cases(self, found: list[dict], schema: dict, references: int) -> list[dict]:
        condition, then, otherwise = (schema.get(name, True) for name in ("if", "then", "else"))
        if then is True and otherwise is True:
            return found
        met = self._both(found, self.options(all_of(condition, then), references + 1))
        try:
            others = self._without(found, condition, references)
        except GrammarError as error:
            raise GrammarError(f"if cannot be decided: {error}") from None
        return met + self._both(others, self.options(otherwise, references + 1))

    def _one_of(self, found: list[dict], parts: list, references: int) -> list[dict]:
        each = [self._both(found, self.options(part, references + 1)) for part in parts]
        result = []
        for i, options in enumerate(each):
            for j, others in enumerate(each):
                if j == i or not options or not self._both(options, others):
                    continue
                try:
                    options = self._without(options, parts[j], references)
                except GrammarError as error:
                    raise GrammarError(
                        "oneOf is supported where its schemas can be told apart; here a value may be of"
                        f" {i} and {j}: use anyOf ({error})"
                    ) from None
            result += options
        return result

    def _without(self, found: list[dict], schema: Any, references: int) -> list[dict]:
        """Those options less what meets a schema."""
        negatives = self._negations.options(schema, references + 1)
        result: list[dict] = []
        for option in found:
            options: list[dict] = []
            undeclared: list[dict] = []
            for negative in self._negations.for_option(negatives, option, self._judge):
                both = self._both([option], [negative])
                if both and {**both[0], "negated": True} == {**option, "negated": True}:
                    options = [option]  # it excludes the schema as it is
                    break
                names = set(negative.get("required", ())) - set(option.get("required", ()))
                # what nobody asked for is written only if there is no other way
                (undeclared if is_closed(option) and names - set(declared(option)) else options).extend(both)
            result += options or undeclared
        if found and not result and self._negations.reasons:
            raise GrammarError(self._negations.reasons[-1])
        return _distinct(result)

    def _both(self, first: list[dict], second: list[dict]) -> list[dict]:
        self._products += len(first) * len(second)
        if len(first) * len(second) > _MAX_OPTIONS or self._products > _MAX_PRODUCTS:
            raise GrammarError(f"more than {_MAX_OPTIONS} combinations of anyOf and oneOf are not supported")
        sizes = [_size(one) for one in first], [_size(other) for other in second]
        cost = len(second) * sum(sizes[0]) + len(first) * sum(sizes[1])
        self._budget.spend(cost, "a conjunction of schemas")
        merged = [merge(one, other, self._judge) for one in first for other in second]
        return _distinct([option for option in merged if option is not None])

    def _unevaluated(self, found: list[dict], schema: dict) -> list[dict]:
        for name in ("unevaluatedProperties", "unevaluatedItems"):
            if name not in schema or schema[name] is True:
                continue
            if any("negated" in option or "contains" in option for option in found):
                raise GrammarError(f"{name} beside not, if, oneOf or contains is not supported")
            found = [_closed(option, name, schema[name]) for option in found]
        return found


def _closed(option: dict, name: str, rest: Any) -> dict:
    """An option with what ``unevaluated...`` says of members or items that nothing else speaks of."""
    if "enum" in option:
        raise GrammarError(f"{name} beside enum is not supported")
    if name == "unevaluatedItems":
        return option if "items" in option else option | {"items": rest}
    shapes = option.get("members", [])
    if any(others is not None for _, _, others in shapes):
        return option
    properties: dict[str, Any] = {}
    patterns: dict[str, Any] = {}
    for own, theirs, _ in shapes:
        properties |= dict.fromkeys(own, True)
        patterns |= dict.fromkeys(theirs, True)
    return option | {"members": [*shapes, [properties, patterns, rest]]}


def _size(option: dict) -> int:
    """How much there is to compare."""
    return 5 + sum(len(value) for value in option.values() if isinstance(value, (list, dict)))


def _absent(name: str) -> dict:
    return {"members": [[{name: False}, {}, None]]}


def _distinct(options: list[dict]) -> list[dict]:
    return list({key(option): option for option in options}.values())
