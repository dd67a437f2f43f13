"""Structural tags as rules: free text in which certain beginnings oblige to a certain continuation.

Both documented forms are read: ``{"type": "structural_tag", "structures": [...], "triggers": [...]}``, and
``{"type": "structural_tag", "format": {...}}`` with formats made of one another: ``const_string``,
``json_schema``, ``regex``, ``grammar`` (EBNF) and ``any_text``; ``sequence``, ``or``, ``optional``, ``star``
and ``plus`` of others; ``tag`` (begin, content, end), ``tags_with_separator`` and ``triggered_tags``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import GrammarError
from .budget import Budget
from .ebnf import parse_ebnf
from .json_schema import compile_schema
from .regex import parse
from .tree import (
    EMPTY,
    SIGN,
    Chars,
    Lexeme,
    Node,
    Repeat,
    Rule,
    Rules,
    Until,
    choice,
    codes,
    complement,
    is_unguarded,
    literal,
    optional,
    productive,
    renamed,
    sequence,
)
from .width import check_width

_MAX_DEPTH = 64
_FIELDS = {
    "const_string": {"value"},
    "json_schema": {"json_schema"},
    "regex": {"pattern"},
    "grammar": {"grammar"},
    "any_text": set(),
    "sequence": {"elements"},
    "or": {"elements"},
    "optional": {"content"},
    "star": {"content"},
    "plus": {"content"},
    "tag": {"begin", "content", "end"},
    "tags_with_separator": {"tags", "separator", "at_least_one", "stop_after_first"},
    "triggered_tags": {"triggers", "tags", "at_least_one", "stop_after_first"},
}


def compile_structural_tag(text: str, budget: Budget | None = None) -> Rules:
    """The rules of a structural tag, written as JSON. Raises GrammarError."""
    try:
        tag = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise GrammarError(f"structural_tag is not valid JSON: {error}.") from None
    if not isinstance(tag, dict) or tag.get("type") != "structural_tag":
        raise GrammarError('structural_tag must be an object with "type": "structural_tag".')
    unknown = set(tag) - {"type", "format", "structures", "triggers"}
    if unknown or ("format" in tag) == ("structures" in tag):
        raise GrammarError(
            'structural_tag must have either "format", or "structures" and "triggers", and no more.'
        )
    budget = budget or Budget()
    compiler = _Compiler(budget)
    root = compiler.format(tag["format"] if "format" in tag else _converted(tag), "format")
    rules = productive({"root": root} | compiler.rules, budget)
    if "root" not in rules or is_unguarded(rules, budget):
        raise GrammarError("structural_tag describes no finite text.")
    check_width(rules, budget)
    return rules


def _converted(tag: Mapping[str, Any]) -> dict[str, Any]:
    """The older form as a format."""
    tags = []
    for structure in _list(tag["structures"], "structures"):
        if not isinstance(structure, dict) or set(structure) - {"begin", "schema", "end"}:
            raise GrammarError('structural_tag: each of "structures" must have "begin", "schema" and "end".')
        content = {"type": "json_schema", "json_schema": structure.get("schema", True)}
        tags.append(
            {
                "type": "tag",
                "begin": structure.get("begin"),
                "content": content,
                "end": structure.get("end", ""),
            }
        )
    return {"type": "triggered_tags", "triggers": tag.get("triggers"), "tags": tags}


def _list(value: Any, path: str) -> list:
    if not isinstance(value, list) or not value:
        raise GrammarError(f"structural_tag: {path} must be a list with at least one entry.")
    return value


def _text(value: Any, path: str, *, may_be_empty: bool = False) -> str:
    if not isinstance(value, str) or not (value or may_be_empty):
        raise GrammarError(f"structural_tag: {path} must be a {'' if may_be_empty else 'non-empty '}string.")
    return value


class _Compiler:
    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self.rules: Rules = {}
        self._count = 0

    def _fresh(self) -> str:
        self._count += 1
        return f"tag_{self._count}"

    def format(self, given: Any, path: str, *, until: str | None = None) -> Node:
        """One format. ``until``: what ends it, for text of any kind; its end is then included."""
        self._budget.spend(1, f"structural_tag at {path}")
        if path.count(".") > _MAX_DEPTH:
            raise GrammarError(f"structural_tag: more than {_MAX_DEPTH} formats within each other.")
        kind = given.get("type") if isinstance(given, dict) else None
        if kind not in _FIELDS:
            raise GrammarError(
                f"structural_tag: {path} is of type {kind!r}, which is not supported:"
                f" {', '.join(_FIELDS)} are."
            )
        if unknown := set(given) - _FIELDS[kind] - {"type"}:
            raise GrammarError(
                f"structural_tag: {path}: {', '.join(sorted(unknown))} of {kind} is not supported."
            )
        if kind == "any_text":
            ends = {} if until is None else {until: EMPTY}
            return self._text_until(ends, may_end=until is None)
        node = getattr(self, f"_{kind}")(given, path)
        return node if until is None else sequence(node, literal(until))

    def _const_string(self, given: dict, path: str) -> Node:
        return literal(_text(given.get("value"), f"{path}.value", may_be_empty=True))

    def _json_schema(self, given: dict, path: str) -> Node:  # noqa: ARG002
        return self._imported(compile_schema(json.dumps(given.get("json_schema")), self._budget))

    def _regex(self, given: dict, path: str) -> Node:
        return parse(_text(given.get("pattern"), f"{path}.pattern", may_be_empty=True), self._budget)

    def _grammar(self, given: dict, path: str) -> Node:
        return self._imported(parse_ebnf(_text(given.get("grammar"), f"{path}.grammar"), self._budget))

    def _sequence(self, given: dict, path: str) -> Node:
        elements = _list(given.get("elements"), f"{path}.elements")
        return sequence(*(self.format(one, f"{path}.elements[{i}]") for i, one in enumerate(elements)))

    def _or(self, given: dict, path: str) -> Node:
        elements = _list(given.get("elements"), f"{path}.elements")
        return choice(*(self.format(one, f"{path}.elements[{i}]") for i, one in enumerate(elements)))

    def _optional(self, given: dict, path: str) -> Node:
        return optional(self.format(given.get("content"), f"{path}.content"))

    def _star(self, given: dict, path: str) -> Node:
        return Repeat(self.format(given.get("content"), f"{path}.content"), 0, None)

    def _plus(self, given: dict, path: str) -> Node:
        return Repeat(self.format(given.get("content"), f"{path}.content"), 1, None)

    def _tag(self, given: dict, path: str) -> Node:
        begin = _text(given.get("begin"), f"{path}.begin", may_be_empty=True)
        return sequence(literal(begin), self._inside(given, path))

    def _tags_with_separator(self, given: dict, path: str) -> Node:
        tags = choice(*(self._listed_tag(*one) for one in self._tags(given, path)))
        separator = literal(_text(given.get("separator"), f"{path}.separator", may_be_empty=True))
        if not given.get("stop_after_first"):
            tags = sequence(tags, Repeat(sequence(separator, tags), 0, None))
        return tags if given.get("at_least_one") else optional(tags)

    def _tags(self, given: dict, path: str) -> Iterator[tuple[dict, str]]:
        """The tags of a format, and where they stand."""
        for i, tag in enumerate(_list(given.get("tags"), f"{path}.tags")):
            here = f"{path}.tags[{i}]"
            if not isinstance(tag, dict) or tag.get("type", "tag") != "tag":
                raise GrammarError(f"structural_tag: {here} must be of type 'tag'.")
            yield tag | {"type": "tag"}, here

    def _listed_tag(self, tag: dict, path: str) -> Node:
        """A tag that stands several times, as a rule."""
        return self._rule(self.format(tag, path))

    def _rule(self, node: Node) -> Rule:
        """A rule for what stands at several places."""
        name = self._fresh()
        self.rules[name] = node
        return Rule(name)

    def _inside(self, given: dict, path: str) -> Node:
        end = _text(given.get("end"), f"{path}.end", may_be_empty=True)
        return self.format(given.get("content"), f"{path}.content", until=end or None)

    def _triggered_tags(self, given: dict, path: str) -> Node:
        triggers = [_text(t, f"{path}.triggers") for t in _list(given.get("triggers"), f"{path}.triggers")]
        for first in triggers:
            if any(first in other for other in triggers if other != first):
                raise GrammarError(
                    f"structural_tag: trigger {first!r} is part of another: leave one of them out."
                )
        ways: dict[str, list[Node]] = {trigger: [] for trigger in triggers}
        for tag, here in self._tags(given, path):
            begin = _text(tag.get("begin"), f"{here}.begin")
            trigger = next((t for t in triggers if begin.startswith(t)), None)
            if trigger is None:
                raise GrammarError(
                    f"structural_tag: {here}.begin {begin!r} starts with none of the triggers."
                )
            rest = sequence(literal(begin[len(trigger) :]), self._inside(tag, here))
            ways[trigger].append(rest)
        tags = {trigger: self._rule(choice(*rests)) for trigger, rests in ways.items() if rests}
        if unused := set(triggers) - set(tags):
            raise GrammarError(f"structural_tag: no tag begins with the trigger {min(unused)!r}.")
        at_least_one, stop_first = bool(given.get("at_least_one")), bool(given.get("stop_after_first"))
        if stop_first:
            return self._text_until(tags, may_end=not at_least_one)
        name = self._fresh()
        after = {trigger: sequence(node, Rule(name)) for trigger, node in tags.items()}
        self.rules[name] = self._text_until(after, may_end=True)
        return self._text_until(after, may_end=False) if at_least_one else Rule(name)

    def _text_until(self, ends: Mapping[str, Node], *, may_end: bool) -> Node:
        """Text up to the first of the keys, which is followed by what belongs to it; or text without any."""
        if not ends:
            return Repeat(Chars(complement(codes(SIGN))), 0, None)
        markers = tuple(sorted(ends))
        options = [sequence(Lexeme(Until(markers, marker)), ends[marker]) for marker in markers]
        if may_end:
            options.append(Lexeme(Until(markers, None)))
        return choice(*options)

    def _imported(self, rules: Rules) -> Node:
        """Rules of their own, under fresh names."""
        names = {name: self._fresh() for name in rules}
        for name, node in rules.items():
            self.rules[names[name]] = renamed(node, names)
        return Rule(names["root"])
