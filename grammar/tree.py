"""A language as a small tree: sets of characters, sequences, choices, repetitions and references to rules.

What callers ask for (a regular expression, a choice, a JSON schema) becomes such trees, and ``notation.py``
writes them in the notation of a backend. So both backends are given the same language, in the plainest terms.
Nodes are no tuples: equal ones are written once, and a sequence must not be equal to a choice of its items.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from .budget import Budget

Ranges = tuple[tuple[int, int], ...]
"""Code points as ascending, separate, inclusive ranges."""

LAST_CODE = 0x10FFFF

SIGN: Final = "\x01"
"""Begins what a watch asks of a grammar (``watched.py``). In no document; masks never allow it."""


@dataclass(frozen=True, slots=True)
class Chars:
    """One character out of a set."""

    ranges: Ranges


@dataclass(frozen=True, slots=True)
class Sequence:
    """One after the other."""

    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """Any one of these."""

    options: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """``least`` to ``most`` times; None is no limit."""

    item: Node
    least: int
    most: int | None


@dataclass(frozen=True, slots=True)
class Rule:
    """What a rule of this name describes."""

    name: str


@dataclass(frozen=True, slots=True)
class Lexeme:
    """A part without rules that is one word: whatever it is read as, it ends at the same place.

    ``in_states``: better written as an automaton than as an expression, where there is a choice. ``is_open``:
    it has no last character of its own, as a string has its quote, and ends where something else begins.
    """

    item: Node
    in_states: bool = True
    is_open: bool = False


@dataclass(frozen=True, slots=True)
class Until:
    """Text up to the end of the first of ``markers`` in it, which is ``last``; None: text with none of them.

    No marker is part of another, and the text does not have the sign of ``watched.py``. Stands in a
    :class:`Lexeme` of its own.
    """

    markers: tuple[str, ...]
    last: str | None


@dataclass(frozen=True, slots=True)
class Every:
    """Text that each of ``items`` describes; these have no rules. Stands in a :class:`Lexeme`."""

    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """Text that ``item`` does not describe; it has no rules. Stands in an :class:`Every`."""

    item: Node


@dataclass(frozen=True, slots=True)
class Words:
    """Just these texts. Stands in a :class:`Lexeme`."""

    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Except:
    """Text of ``item``, which has no rules, but none of ``words``. Stands in a :class:`Lexeme`."""

    item: Node
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Anchor:
    """The beginning of the text, or its end. Only in patterns as they are read (``regex.parse_ecma``)."""

    is_begin: bool


@dataclass(frozen=True, slots=True)
class Lookahead:
    """What must stand here, or must not; it takes no characters. Only in patterns, as :class:`Anchor`."""

    item: Node
    is_wanted: bool


Node = (
    Chars
    | Sequence
    | Choice
    | Repeat
    | Rule
    | Lexeme
    | Until
    | Every
    | Not
    | Words
    | Except
    | Anchor
    | Lookahead
)
Rules = dict[str, Node]
"""Rules by name; the language is that of ``root``."""

EMPTY = Sequence(())


def joined(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Ranges in order, with those that touch put together and surrogates (no characters) left out."""
    result: list[tuple[int, int]] = []
    parts = [part for low, high in ranges for part in ((low, min(high, 0xD7FF)), (max(low, 0xE000), high))]
    for low, high in sorted(part for part in parts if part[0] <= part[1]):
        if result and low <= result[-1][1] + 1:
            result[-1] = result[-1][0], max(high, result[-1][1])
        else:
            result.append((low, high))
    return tuple(result)


def complement(ranges: Ranges, last: int = LAST_CODE) -> Ranges:
    """Every character up to ``last`` that is not in ``ranges``."""
    gaps, begin = [], 0
    for low, high in ranges:
        gaps.append((begin, low - 1))
        begin = high + 1
    return joined((low, min(high, last)) for low, high in [*gaps, (begin, last)] if low <= min(high, last))


def common(first: Ranges, second: Ranges) -> Ranges:
    """The characters in both."""
    return complement(joined(complement(first) + complement(second)))


def codes(chars: str) -> Ranges:
    """The set of these characters."""
    return joined((ord(char), ord(char)) for char in chars)


def literal(text: str) -> Sequence:
    """Just this text."""
    return Sequence(tuple(map(_char, text)))


@functools.lru_cache(maxsize=4096)
def _char(char: str) -> Chars:
    return Chars(codes(char))


def word(text: str) -> Lexeme:
    """Just this text, which is one word."""
    return Lexeme(literal(text), in_states=False)


def sequence(*items: Node) -> Node:
    """One after the other, sequences within it dissolved."""
    flat: list[Node] = []
    for item in items:
        flat += item.items if isinstance(item, Sequence) else (item,)
    return flat[0] if len(flat) == 1 else Sequence(tuple(flat))


def choice(*options: Node) -> Node:
    """Any one of these, repeated ones left out."""
    distinct = tuple(dict.fromkeys(options))
    return distinct[0] if len(distinct) == 1 else Choice(distinct)


def optional(node: Node) -> Node:
    """It or nothing."""
    return Repeat(node, 0, 1)


def renamed(node: Node, names: Mapping[str, str]) -> Node:
    """``node`` with rules under other names."""
    if isinstance(node, Rule):
        return Rule(names[node.name])
    if isinstance(node, Sequence):
        return Sequence(tuple(renamed(item, names) for item in node.items))
    if isinstance(node, Choice):
        return Choice(tuple(renamed(option, names) for option in node.options))
    if isinstance(node, (Repeat, Lexeme)):
        return replace(node, item=renamed(node.item, names))
    return node


def parts(node: Node) -> Iterator[Node]:
    """The nodes right below."""
    if isinstance(node, (Sequence, Every)):
        yield from node.items
    elif isinstance(node, Choice):
        yield from node.options
    elif isinstance(node, (Repeat, Lexeme, Except)):
        yield node.item


def productive(rules: Rules, budget: Budget) -> Rules:
    """The rules without what no finite text can be made of; no ``root`` is left if that is everything."""
    known = _closed(rules, _is_finite, budget)
    kept = {name: _pruned(rules[name], known, budget) for name in rules if name in known}
    return {name: node for name, node in kept.items() if node is not None}


def _closed(rules: Rules, holds: Callable[[Node, set[str], Budget], bool], budget: Budget) -> set[str]:
    """The rules of which something holds, given that it does of others among them."""
    waiting: dict[str, list[str]] = {}  # rules to look at again when it turns out to hold of this one
    for name, node in rules.items():
        for other in references(node, budget):
            waiting.setdefault(other, []).append(name)
    known: set[str] = set()
    todo = list(reversed(rules))  # most rules use those that were made before them, which are looked at first
    while todo:
        name = todo.pop()
        if name not in known and holds(rules[name], known, budget):
            known.add(name)
            todo += waiting.get(name, ())
    return known


def references(node: Node, budget: Budget) -> set[str]:
    """The rules that a node uses."""
    found, todo = set(), [node]
    while todo:
        one = todo.pop()
        budget.spend(1, "the number of rules")
        if isinstance(one, Rule):
            found.add(one.name)
        elif not isinstance(one, Lexeme):
            todo += parts(one)
    return found


def _is_finite(node: Node, known: set[str], budget: Budget) -> bool:
    """Whether some finite text is of ``node``, given that those of the rules in ``known`` are."""
    budget.spend(1, "the number of rules")
    if isinstance(node, Rule):
        return node.name in known
    if isinstance(node, Chars):
        return bool(node.ranges)
    if isinstance(node, Lexeme):
        return True
    if isinstance(node, Repeat):
        return not node.least or (node.most != 0 and _is_finite(node.item, known, budget))
    if isinstance(node, Choice):
        return any(_is_finite(option, known, budget) for option in node.options)
    assert isinstance(node, Sequence)  # what else there is stands in lexemes
    return all(_is_finite(item, known, budget) for item in node.items)


def possible(node: Node, budget: Budget) -> Node:
    """A tree without rules, less the options that no text can be; a set of no characters if that is all."""
    kept = _pruned(node, set(), budget)
    return Chars(()) if kept is None else kept


def _pruned(node: Node, known: set[str], budget: Budget) -> Node | None:
    """``node`` less the options that need rules which are not in ``known``; None if nothing is left."""
    budget.spend(1, "the number of rules")
    if isinstance(node, Rule):
        return node if node.name in known else None
    if isinstance(node, Chars):
        return node if node.ranges else None
    if isinstance(node, Lexeme):
        return node
    if isinstance(node, Repeat):
        item = _pruned(node.item, known, budget) if node.most != 0 else None
        if item is None:
            return None if node.least else EMPTY
        return Repeat(item, node.least, node.most)
    if isinstance(node, Choice):
        pruned = [_pruned(one, known, budget) for one in node.options]
        options = [option for option in pruned if option is not None]
        return choice(*options) if options else None
    assert isinstance(node, Sequence)  # what else there is stands in lexemes
    pruned = [_pruned(item, known, budget) for item in node.items]
    items = [item for item in pruned if item is not None]
    return Sequence(tuple(items)) if len(items) == len(pruned) else None


def is_unguarded(rules: Rules, budget: Budget) -> bool:
    """Whether a rule may begin with itself, which left-to-right parsers cannot follow."""
    if not _are_circular({name: references(node, budget) for name, node in rules.items()}, budget):
        return False
    empty = _closed(rules, _may_be_empty, budget)
    first = {name: set(_beginnings(node, empty, budget)) for name, node in rules.items()}
    return _are_circular(first, budget)


def _are_circular(uses: Mapping[str, set[str]], budget: Budget) -> bool:
    """Whether any leads back to itself: is left when those that lead to none which is left are taken away."""
    left = {name: len(others & uses.keys()) for name, others in uses.items()}
    users: dict[str, list[str]] = {}
    for name, others in uses.items():
        for other in others:
            users.setdefault(other, []).append(name)
    todo = [name for name, count in left.items() if not count]
    for name in todo:
        for user in users.get(name, ()):
            budget.spend(1, "the number of rules")
            left[user] -= 1
            if not left[user]:
                todo.append(user)
    return len(todo) < len(uses)


def _beginnings(node: Node, empty: set[str], budget: Budget) -> Iterator[str]:
    """The rules that a text of ``node`` may begin with."""
    budget.spend(1, "the number of rules")
    if isinstance(node, Rule):
        yield node.name
    for part in parts(node):
        yield from _beginnings(part, empty, budget)
        if isinstance(node, Sequence) and not _may_be_empty(part, empty, budget):
            return


def _may_be_empty(node: Node, empty: set[str], budget: Budget) -> bool:
    budget.spend(1, "the number of rules")
    if isinstance(node, Rule):
        return node.name in empty
    if isinstance(node, Until):
        return node.last is None
    if isinstance(node, Repeat) and node.least == 0:
        return True
    if isinstance(node, Choice):
        return any(_may_be_empty(option, empty, budget) for option in node.options)
    return not isinstance(node, Chars) and all(_may_be_empty(part, empty, budget) for part in parts(node))
