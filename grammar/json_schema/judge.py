"""Whether a value meets a schema, in three values: None where nobody can be certain.

Formats and some classes of characters are read in several ways (see ``formats.py`` and ``patterns.py``):
what all accept is accepted, what none accepts is not, and the rest is uncertain.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any

from ..automaton import Automaton, NoText, accepts, determine
from ..budget import Budget, shortened
from ..patterns import search
from ..regex import parse
from .formats import FORMATS
from .keywords import check_keywords
from .kinds import atom, key
from .options import leaf
from .strings import wide

_MAX_DEPTH = 64
_COMPARED: dict[str, Callable[[Any, Any], bool]] = {
    "minimum": lambda value, bound: value >= bound,
    "maximum": lambda value, bound: value <= bound,
    "exclusiveMinimum": lambda value, bound: value > bound,
    "exclusiveMaximum": lambda value, bound: value < bound,
    "multipleOf": lambda value, unit: (Fraction(repr(value)) / Fraction(repr(unit))).denominator == 1,
}
_SIZES = {"Length": "string", "Items": "array", "Properties": "object"}


def both(verdicts: Iterable[bool | None]) -> bool | None:
    """True if all are."""
    known = set(verdicts)
    return False if False in known else None if None in known else True


def either(verdicts: Iterable[bool | None]) -> bool | None:
    """True if any is."""
    return opposite(both(map(opposite, verdicts)))


def opposite(verdict: bool | None) -> bool | None:
    """What is not certain stays so."""
    return None if verdict is None else not verdict


class Judgement:
    """Judges values; ``resolve`` follows a ``$ref``."""

    def __init__(self, resolve: Callable[[str], Any], budget: Budget) -> None:
        self._resolve = resolve
        self._budget = budget
        self._automata: dict[tuple[str, str, bool], Automaton | None] = {}

    def __call__(self, schema: Any, value: Any, depth: int = 0) -> bool | None:
        """Whether ``value`` meets a schema. Raises GrammarError for what nobody can read."""
        if isinstance(schema, bool):
            return schema
        if depth > _MAX_DEPTH:
            return None
        self._budget.spend(5, "an enum or const beside other keywords")
        check_keywords(schema)
        inner = functools.partial(self.__call__, depth=depth + 1)
        verdict = both(self._applied(schema, value, inner))
        return verdict if verdict is False else both((verdict, self.option(leaf(schema), value, depth)))

    def option(self, option: dict, value: Any, depth: int = 0) -> bool | None:
        """The same for an option (``options.py``)."""
        return both(self._leaf(option, value, functools.partial(self.__call__, depth=depth + 1)))

    def _applied(self, schema: dict, value: Any, inner: Callable) -> Iterable[bool | None]:
        if "$ref" in schema:
            yield inner(self._resolve(schema["$ref"]), value)
        if "const" in schema:
            yield key(schema["const"]) == key(value)
        if "enum" in schema:
            yield key(value) in map(key, schema["enum"])
        for one in schema.get("allOf", ()):
            yield inner(one, value)
        if "anyOf" in schema:
            yield either(inner(one, value) for one in schema["anyOf"])
        if "oneOf" in schema:
            verdicts = [inner(one, value) for one in schema["oneOf"]]
            yield False if verdicts.count(True) > 1 else None if None in verdicts else True in verdicts
        if "not" in schema:
            yield opposite(inner(schema["not"], value))
        if "if" in schema:
            condition = inner(schema["if"], value)
            yield either((opposite(condition), inner(schema.get("then", True), value)))
            yield either((condition, inner(schema.get("else", True), value)))
        if isinstance(value, dict):
            for name, names in schema.get("dependentRequired", {}).items():
                yield name not in value or set(names) <= set(value)
            for name, one in schema.get("dependentSchemas", {}).items():
                yield name not in value or inner(one, value)
        if ("unevaluatedProperties" in schema and isinstance(value, dict) and value) or (
            "unevaluatedItems" in schema and isinstance(value, list) and value
        ):
            yield None

    def _leaf(self, option: dict, value: Any, inner: Callable) -> Iterable[bool | None]:
        kind = atom(value)
        if "type" in option:
            yield kind in option["type"]
        if "excluded" in option:
            yield key(value) not in map(key, option["excluded"])
        if kind in ("integer", "fraction"):
            for name, compare in _COMPARED.items():
                if name in option:
                    yield compare(value, option[name])
        for end, of in _SIZES.items():
            if kind == of:
                yield option.get(f"min{end}", 0) <= len(value) <= option.get(f"max{end}", len(value))
        if kind == "string":
            yield from self._text(option, value)
        if kind == "array":
            yield from self._items(option, value, inner)
        if kind == "object":
            yield from self._object(option, value, inner)

    def _text(self, option: dict, text: str) -> Iterable[bool | None]:
        for name in option.get("pattern", ()):
            yield self.found(name, text)
        for name in option.get("no_pattern", ()):
            yield opposite(self.found(name, text))
        for name in option.get("format", ()):
            yield self._of_format(name, text)
        for name in option.get("no_format", ()):
            yield opposite(self._of_format(name, text))

    def found(self, pattern: str, text: str) -> bool | None:
        """Whether a pattern is found in a text."""
        if self._accepts("pattern", pattern, text, widest=False):
            return True
        return None if self._accepts("pattern", pattern, text, widest=True) else False

    def _of_format(self, form: str, text: str) -> bool | None:
        if form not in FORMATS or self._accepts("format", form, text, widest=False):
            return True
        return None if self._accepts("format", form, text, widest=True) else False

    def _accepts(self, kind: str, name: str, text: str, *, widest: bool) -> bool:
        at = kind, name, widest
        if at not in self._automata:
            if kind == "pattern":
                node = search(name, self._budget, widest=widest)
            else:
                node = wide(name, self._budget) if widest else parse(FORMATS[name])
            try:
                self._automata[at] = determine(node, self._budget, f"the {kind} {shortened(name)}")
            except NoText:
                self._automata[at] = None
        automaton = self._automata[at]
        self._budget.spend(len(text), f"a value beside the {kind} {shortened(name)}")
        return automaton is not None and accepts(automaton, text)

    def _items(self, option: dict, value: list, inner: Callable) -> Iterable[bool | None]:
        first = option.get("prefixItems", ())
        yield from map(inner, first, value)
        yield from (inner(option.get("items", True), one) for one in value[len(first) :])
        if option.get("uniqueItems"):
            yield len(set(map(key, value))) == len(value)
        for wanted, least, most in option.get("contains", ()):
            verdicts = [inner(wanted, one) for one in value]
            sure, maybe = verdicts.count(True), len(verdicts) - verdicts.count(False)
            most = len(value) if most is None else most
            yield True if least <= sure and maybe <= most else False if maybe < least or sure > most else None

    def _object(self, option: dict, value: dict, inner: Callable) -> Iterable[bool | None]:
        yield set(option.get("required", ())) <= set(value)
        for properties, patterns, others in option.get("members", ()):
            for name, one in value.items():
                matched = [opposite(self.found(pattern, name)) for pattern in patterns]
                for verdict, schema in zip(matched, patterns.values()):
                    yield either((verdict, inner(schema, one)))
                if name in properties:
                    yield inner(properties[name], one)
                elif others is not None:
                    yield either((opposite(both(matched)), inner(others, one)))
        for schema in option.get("propertyNames", ()):
            yield from (inner(schema, name) for name in value)
