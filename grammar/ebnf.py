"""Grammars of the callers, in EBNF as llama.cpp's GBNF and xgrammar write it, as rules.

    root ::= "key: " value ("," value)*      # a comment
    value ::= [a-z]{1,8} | "(" root ")"

Literals and sets know ``\\n``, ``\\r``, ``\\t``, ``\\xHH``, ``\\uHHHH``, ``\\UHHHHHHHH`` and any sign behind
a backslash; ``*``, ``+``, ``?`` and ``{m,n}`` repeat; a rule goes on until the next one begins. The language
is that of ``root``.
"""

from __future__ import annotations

import re

from ..errors import GrammarError
from .budget import Budget, shortened
from .tree import (
    Chars,
    Node,
    Repeat,
    Rule,
    Rules,
    choice,
    complement,
    is_unguarded,
    joined,
    literal,
    parts,
    productive,
    sequence,
)
from .width import check_width

_TOKEN = re.compile(
    r"""(?P<space>(?:\s|\#[^\n]*)+)
    | (?P<rule>[A-Za-z_][\w-]*(?=(?:[ \t]|\#[^\n]*\n)*::=)) | (?P<name>[A-Za-z_][\w-]*) | (?P<is>::=)
    | "(?P<text>(?:[^"\\\n]|\\.)*)" | \[(?P<set>(?:[^\]\\]|\\.)*)\]
    | (?P<bounds>[*+?]|\{\s*\d*\s*(?:,\s*\d*\s*)?\}) | (?P<sign>[()|])""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))|(.)", re.DOTALL)
_SHORT = {"n": "\n", "r": "\r", "t": "\t"}
_MAX_COUNT = 10_000
_MAX_DEPTH = 100


def parse_ebnf(text: str, budget: Budget | None = None) -> Rules:
    """Read a grammar. Raises GrammarError that says where it is wrong."""
    budget = budget or Budget()
    rules = _Parser(text, budget).parse()
    if is_unguarded(rules, budget):
        raise GrammarError(
            "ebnf: a rule begins with itself (left recursion). Let it end with itself instead."
        )
    finite = productive(rules, budget)
    if "root" not in finite:
        raise GrammarError("ebnf: root describes no finite text: every way through it goes on for ever.")
    check_width(finite, budget)
    return finite


class _Parser:
    """Recursive descent over tokens (kind, value, position)."""

    def __init__(self, text: str, budget: Budget) -> None:
        self._text = text
        self._budget = budget
        self._tokens: list[tuple[str, str, int]] = []
        at = 0
        while at < len(text):
            budget.spend(1, "ebnf")
            found = _TOKEN.match(text, at)
            if found is None:
                raise self._wrong("cannot be read from here", at)
            kind = found.lastgroup
            assert kind is not None  # each way to match has a name
            if kind != "space":
                self._tokens.append((kind, found[kind], at))
            at = found.end()
        self._next = self._depth = 0

    def _wrong(self, what: str, at: int | None = None) -> GrammarError:
        if at is None:
            at = self._tokens[self._next][2] if self._next < len(self._tokens) else len(self._text)
        line = self._text.count("\n", 0, at) + 1
        return GrammarError(f"ebnf, line {line}: {what}: {self._text[at : at + 20]!r}.")

    def _kind(self) -> str:
        return self._tokens[self._next][0] if self._next < len(self._tokens) else ""

    def _value(self) -> str:
        return self._tokens[self._next][1] if self._next < len(self._tokens) else ""

    def parse(self) -> Rules:
        rules: Rules = {}
        while self._kind():
            if self._kind() != "rule":
                raise self._wrong("a rule 'name ::= ...' should begin here")
            name = self._value()
            if name in rules:
                raise self._wrong(f"rule {name!r} is defined twice")
            self._next += 2
            rules[name] = self._choice()
        if "root" not in rules:
            raise GrammarError("ebnf: there is no rule named root, which is where a grammar begins.")
        for name, node in rules.items():
            self._check_names(node, name, rules)
        return rules

    def _check_names(self, node: Node, name: str, rules: Rules) -> None:
        self._budget.spend(1, f"ebnf: rule {name!r}")
        if isinstance(node, Rule) and node.name not in rules:
            raise GrammarError(f"ebnf: rule {name!r} uses {node.name!r}, which is not defined.")
        for part in parts(node):
            self._check_names(part, name, rules)

    def _choice(self) -> Node:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise self._wrong(f"more than {_MAX_DEPTH} groups within each other")
        options = [self._sequence()]
        while self._value() == "|" and self._kind() == "sign":
            self._next += 1
            options.append(self._sequence())
        self._depth -= 1
        return choice(*options)

    def _sequence(self) -> Node:
        items: list[Node] = []
        while self._kind() in ("name", "text", "set") or (self._kind(), self._value()) == ("sign", "("):
            items.append(self._repeated(self._item()))
        return sequence(*items)

    def _item(self) -> Node:
        kind, value, _ = self._tokens[self._next]
        self._next += 1
        if kind == "name":
            return Rule(value)
        if kind == "text":
            return literal("".join(char for char, _ in self._characters(value)))
        if kind == "set":
            return self._set(value)
        node = self._choice()
        if self._value() != ")":
            raise self._wrong("a ) is missing")
        self._next += 1
        return node

    def _repeated(self, node: Node) -> Node:
        while self._kind() == "bounds":
            text = self._value()
            if text[0] == "{":
                low, comma, high = text[1:-1].replace(" ", "").partition(",")
                if not (low or high):
                    raise self._wrong("a repetition needs a number")
                least = int(low or 0)
                most = (int(high) if high else None) if comma else least
            else:
                least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}[text]
            if most is not None and most < least:
                raise self._wrong("a repetition {m,n} has m above n")
            if max(least, most or 0) > _MAX_COUNT:
                raise self._wrong(f"a repetition of more than {_MAX_COUNT} is not supported")
            self._next += 1
            node = Repeat(node, least, most)
        return node

    def _characters(self, value: str) -> list[tuple[str, bool]]:
        """Characters of a literal or set, and whether each was escaped."""
        self._budget.spend(2 * len(value), f"ebnf: the text or set {shortened(value)}")
        found = []
        for match in _ESCAPE.finditer(value):
            code = match[1] or match[2] or match[3]
            if code is not None:
                number = int(code, 16)
                if number > 0x10FFFF or 0xD800 <= number <= 0xDFFF:
                    raise self._wrong(f"{match[0]} is no character")
                found.append((chr(number), True))
            elif match[4] is not None:
                if match[4].isalnum() and match[4] not in _SHORT:
                    raise self._wrong(f"the escape \\{match[4]} is not known")
                found.append((_SHORT.get(match[4], match[4]), True))
            else:
                found.append((match[5], False))
        return found

    def _set(self, value: str) -> Node:
        chars = self._characters(value.removeprefix("^"))
        ranges, at = [], 0
        while at < len(chars):
            low = ord(chars[at][0])
            if at + 2 < len(chars) and chars[at + 1] == ("-", False):
                high = ord(chars[at + 2][0])
                if high < low:
                    raise self._wrong(f"the set [{value}] has an impossible range")
                at += 2
            else:
                high = low
            ranges.append((low, high))
            at += 1
        members = joined(ranges)
        members = complement(members) if value.startswith("^") else members
        if not members:
            raise self._wrong(f"no character is in the set [{value}]")
        return Chars(members)
