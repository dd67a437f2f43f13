"""Walks a schema and makes rules of it; the parts of them are made next door, type by type."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable
from decimal import Decimal
from typing import Any

from ...errors import GrammarError
from ..automaton import NoText
from ..budget import Budget
from ..tree import (
    Chars,
    Node,
    Rule,
    Rules,
    choice,
    is_unguarded,
    optional,
    parts,
    productive,
    sequence,
    word,
)
from .context import sizes
from .drafts import OPEN
from .judge import Judgement
from .keywords import OF_TYPE, check_keywords, constraining
from .kinds import ATOMS, NoValue, types
from .lists import array
from .maps import mapping
from .merge import Conjunctions
from .numbers import Bounds, any_number, fractions, integers, multiples, numbers
from .objects import list_of
from .references import Document
from .strings import string, texts
from .tokens import BEGIN_LIST, BEGIN_OBJECT, END_LIST, END_OBJECT, MEMBER, constants, number

_SHARED_SIZE = 8  # nodes and ranges: what is larger and used more than once becomes a rule
_MAX_DEPTH = 64
_MAX_SCHEMAS = 50_000  # that are met on the walk


def compile_schema(text: str, budget: Budget | None = None) -> Rules:
    """The rules of a JSON schema, written as JSON. Raises GrammarError for what cannot be enforced."""
    try:
        schema = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise GrammarError(f"json_schema is not valid JSON: {error}.") from None
    try:
        return _Compiler(schema, budget or Budget()).rules_of_all()
    except RecursionError:
        raise GrammarError("json_schema is nested too deeply.") from None


class _Compiler:
    """Walks a schema, as a :class:`.context.Context`; ``path`` is a JSON pointer, for messages."""

    def __init__(self, schema: Any, budget: Budget) -> None:
        self.budget = budget
        self._document = Document(schema)
        self.judge = Judgement(self._document.resolve, budget)
        self._conjunctions = Conjunctions(self._document.resolve, self.judge, budget)
        self._rules: Rules = {}
        self._targets: dict[Hashable, str] = {}  # rule of each $ref, and of each conjunction as JSON
        self._shared: dict[Node, str] = {}
        self._awaited: list[tuple[str, Any, str]] = []  # the references whose rules are still to be made
        self._depth = 0
        self._met = 0
        self._why_nothing = ""

    def rules_of_all(self) -> Rules:
        """The rules of the whole schema."""
        root = self.node(self._document.schema, "#")
        for name, target, reference in self._awaited:
            self._rules[name] = self.node(target, reference)
        rules = productive({"root": root} | self._rules, self.budget)
        if "root" not in rules:
            why = f" ({self._why_nothing})" if self._why_nothing else ""
            raise GrammarError(
                f"json_schema describes nothing finite: it requires itself, or what no value can be{why}."
            )
        if is_unguarded(rules, self.budget):
            raise GrammarError("json_schema has a $ref that leads back to itself with nothing around it.")
        return rules

    # ---- errors ------------------------------------------------------------------------------------

    def _at(self, path: str, make: Callable[..., Any], *args: Any) -> Any:
        """``make(...)``, its errors with the place where they belong."""
        try:
            return make(*args)
        except GrammarError as error:
            if str(error).startswith("json_schema at "):
                raise
            what = str(error).rstrip(".")
            raise GrammarError(
                f"json_schema at {path}: {what}, so the request is refused rather than run without that"
                " limit."
            ) from None

    def _nothing(self, why: str) -> Node:
        self._why_nothing = self._why_nothing or why.rstrip(".")
        return Rule("nothing")  # which no rule describes: whatever needs it is pruned

    # ---- any schema --------------------------------------------------------------------------------

    def node(self, schema: Any, path: str) -> Node:
        """The rules of a schema below."""
        self.budget.spend(5, path)
        if schema is True:
            return self._anything()
        if schema is False:
            return self._nothing(f"{path} is false")
        return self._at(path, self._node, schema, path)

    def _node(self, schema: Any, path: str) -> Node:
        if not isinstance(schema, dict):
            raise GrammarError(f"a schema must be an object or a boolean, got {json.dumps(schema)[:40]}")
        check_keywords(schema)
        self._met += 1
        if self._depth >= _MAX_DEPTH:
            raise GrammarError(f"more than {_MAX_DEPTH} schemas within each other are not supported")
        if self._met > _MAX_SCHEMAS:
            raise GrammarError(f"more than {_MAX_SCHEMAS} schemas, references followed, are not supported")
        self._depth += 1
        node = self._plain(schema, path) or self._conjunction(schema, path)
        self._depth -= 1
        return node

    def _plain(self, schema: dict, path: str) -> Node | None:
        """A schema with one keyword that is made of others or of values; None if it is none of those."""
        given = constraining(schema)
        if not given:
            return self._anything()
        name, value = given[0], schema[given[0]]
        if len(given) > 1:
            return None
        if name == "$ref":
            return self._reference(value)
        if name in ("const", "enum"):
            return self._constants([value] if name == "const" else value, path)
        if name == "allOf" and len(value) == 1:
            return self.node(value[0], f"{path}/allOf/0")
        if name == "anyOf" or (name == "oneOf" and self._conjunctions.are_apart(value)):
            return choice(*(self.node(one, f"{path}/{name}/{i}") for i, one in enumerate(value)))
        return None

    def _conjunction(self, schema: dict, path: str) -> Node:
        """What must meet several schemas or keywords at once; a rule, as it may lead back to itself."""
        if all(name == "type" or name in _OF_TYPES for name in constraining(schema)):
            return self._any_of(schema, path)
        text = json.dumps({name: schema[name] for name in constraining(schema)})
        self.budget.spend(len(text) // 64, f"the schema at {path}", len(text))
        if text not in self._targets:
            name = self._targets[text] = f"all_{len(self._targets)}"
            self._rules[name] = self._any_of(schema, path)
        return Rule(self._targets[text])

    def options(self, schema: Any, path: str) -> list[dict]:
        """What a value of a schema must be one of."""
        return self._at(path, self._conjunctions.options, schema)

    def _any_of(self, schema: dict, path: str) -> Node:
        options = self.options(schema, path)
        if not options:
            return self._nothing(f"{path}: no value meets {' and '.join(constraining(schema))}")
        return choice(*(self._option(option, path) for option in options))

    def _reference(self, reference: str) -> Node:
        target = self._document.resolve(reference)
        if reference not in self._targets:
            name = self._targets[reference] = f"ref_{len(self._targets)}"
            self._awaited.append((name, target, reference))  # not now: references may lead on for ever
        return Rule(self._targets[reference])

    def _constants(self, values: list, path: str) -> Node:
        self.budget.spend(3 * len(values), f"the list of values at {path}", 200 * len(values))
        return constants(values)

    # ---- by type -----------------------------------------------------------------------------------

    def _option(self, option: dict, path: str) -> Node:
        """What a conjunction comes to."""
        if "enum" in option:
            return self._constants(option["enum"], path)
        kinds = option.get("type")
        if kinds is None:
            kinds = [one for one in ATOMS if any(name in option for name in _KEYWORDS.get(one, ()))]
            kinds = ATOMS if OPEN in option or not kinds else kinds
            if not set(option) - {"negated", OPEN}:
                return self._anything()
        return choice(*(self._of_type(one, option, path) for one in types(kinds)))

    def _of_type(self, kind: str, option: dict, path: str) -> Node:
        make: dict[str, Callable[[], Node]] = {
            "string": lambda: self.strings(option),
            "array": lambda: self._but(list, option, array(option, path, self)),
            "object": lambda: self._but(dict, option, mapping(option, path, self)),
            "boolean": lambda: self._words(option, (True, False)),
            "null": lambda: self._words(option, (None,)),
        }
        try:
            node = make[kind]() if kind in make else self.share(self._numbers(kind, option))
        except (NoValue, NoText) as error:
            return self._nothing(f"{path}: {error}")
        self.budget.locate(node, f"the schema at {path}")
        return node

    def _words(self, option: dict, values: tuple) -> Node:
        kept = [one for one in values if self.judge.option({"excluded": option.get("excluded", [])}, one)]
        if not kept:
            raise NoValue("every value is excluded")
        return constants(kept)

    def _but(self, kind: type, option: dict, node: Node) -> Node:
        """``node``, which must have none of the excluded values."""
        rest = {name: value for name, value in option.items() if name != "excluded"}
        for value in option.get("excluded", ()):
            if isinstance(value, kind) and self.judge.option(rest, value) is not False:
                raise GrammarError("to exclude an object or a list by const or enum is not supported")
        return node

    def strings(self, option: dict) -> Node:
        """The strings of an option. Raises NoValue if there are none."""
        least, most = sizes(option, "Length")
        return string(
            texts(
                least,
                most,
                patterns=option.get("pattern", ()),
                formats=option.get("format", ()),
                no_patterns=option.get("no_pattern", ()),
                no_formats=option.get("no_format", ()),
                excluded=[one for one in option.get("excluded", ()) if isinstance(one, str)],
                budget=self.budget,
            )
        )

    def _numbers(self, kind: str, option: dict) -> Node:
        """Numbers, in as many parts as excluded ones cut them into."""
        cuts = sorted({Decimal(repr(one)) for one in option.get("excluded", ()) if _is_number(one)})
        whole = Bounds.of(option)
        parts, low, is_open = [], whole.low, whole.open_low
        for cut in cuts:
            if low is not None and (cut < low or (cut == low and is_open)):
                continue
            if whole.high is not None and (cut > whole.high or (cut == whole.high and whole.open_high)):
                break
            parts.append(Bounds(low, cut, is_open, True))
            low, is_open = cut, True
        parts.append(Bounds(low, whole.high, is_open, whole.open_high))
        found, why = [], NoValue(f"no {kind} lies between {whole}")
        for bounds in parts:
            try:
                found.append(self._between(kind, option, bounds))
            except NoValue as error:
                why = error
        if not found:
            raise why
        return choice(*found)

    def _between(self, kind: str, option: dict, bounds: Bounds) -> Node:
        low, high = bounds.low, bounds.high
        is_open = bounds.open_low or bounds.open_high
        if low is not None and high is not None and (low > high or (low == high and is_open)):
            raise NoValue(f"no {kind} lies between {bounds}")
        if kind == "fraction":
            if "multipleOf" in option or bounds != Bounds():
                raise GrammarError("numbers that are no integers are not supported within bounds")
            return number(fractions())
        if option.get("multipleOf", 1) != 1 or (kind == "number" and "multipleOf" in option):
            unit = Decimal(repr(option["multipleOf"]))
            return number(multiples(bounds, unit, whole=kind == "integer"))
        return number(integers(*bounds.whole()) if kind == "integer" else numbers(bounds))

    # ---- rules that are shared ---------------------------------------------------------------------

    def rules(self, path: str) -> Callable[[Hashable, Callable[[], Node]], Node]:
        """Makes rules by name, which may lead back to themselves."""
        names: dict[Hashable, str] = {}
        prefix = f"items_{len(self._targets)}"
        self._targets[prefix, path] = prefix

        def rule(key: Hashable, make: Callable[[], Node]) -> Node:
            if key not in names:
                names[key] = f"{prefix}_{len(names)}"
                self._rules[names[key]] = make()
            return Rule(names[key])

        return rule

    def share(self, node: Node) -> Node:
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


_OF_TYPES = frozenset(sum(OF_TYPE.values(), ()))
_KEYWORDS = {
    "object": ("members", "required", "minProperties", "maxProperties", "propertyNames"),
    "array": OF_TYPE["array"],
    "string": (*OF_TYPE["string"], "no_pattern", "no_format"),
    "integer": OF_TYPE["number"],
    "fraction": OF_TYPE["number"],
}
"""Types that are meant where none is named, by the keywords of options."""


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _size(node: Node, limit: int) -> int:
    """Nodes and ranges of a tree, counted up to ``limit``."""
    total = 1 + (len(node.ranges) if isinstance(node, Chars) else 0)
    for part in parts(node):
        if total >= limit:
            break
        total += _size(part, limit - total)
    return total
