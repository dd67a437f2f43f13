"""A language as a small tree: sets of characters, sequences, choices, repetitions and references to rules.

What callers ask for (a regular expression, a choice, a JSON schema) becomes such trees, and ``notation.py``
writes them in the notation of a backend. So both backends are given the same language, in the plainest terms.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

Ranges = tuple[tuple[int, int], ...]
"""Code points as ascending, separate, inclusive ranges."""

LAST_CODE = 0x10FFFF


class Chars(NamedTuple):
    """One character out of a set."""

    ranges: Ranges


class Sequence(NamedTuple):
    """One after the other."""

    items: tuple[Node, ...]


class Choice(NamedTuple):
    """Any one of these."""

    options: tuple[Node, ...]


class Repeat(NamedTuple):
    """``least`` to ``most`` times; None is no limit."""

    item: Node
    least: int
    most: int | None


class Rule(NamedTuple):
    """What a rule of this name describes."""

    name: str


class Lexeme(NamedTuple):
    """A part without rules that is one word: whatever it is read as, it ends at the same place.

    ``in_states``: better written as an automaton than as an expression, where there is a choice. ``is_open``:
    it has no last character of its own, as a string has its quote, and ends where something else begins.
    """

    item: Node
    in_states: bool = True
    is_open: bool = False


class Until(NamedTuple):
    """Text up to the end of the first of ``markers`` in it, which is ``last``; None: text with none of them.

    No marker is part of another. Stands in a :class:`Lexeme` of its own.
    """

    markers: tuple[str, ...]
    last: str | None


class Every(NamedTuple):
    """Text that each of ``items`` describes; these have no rules. Stands in a :class:`Lexeme`."""

    items: tuple[Node, ...]


Node = Chars | Sequence | Choice | Repeat | Rule | Lexeme | Until | Every
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
    return Sequence(tuple(Chars(codes(char)) for char in text))


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
        return node._replace(item=renamed(node.item, names))
    return node


def parts(node: Node) -> Iterator[Node]:
    """The nodes right below."""
    if isinstance(node, (Sequence, Every)):
        yield from node.items
    elif isinstance(node, Choice):
        yield from node.options
    elif isinstance(node, (Repeat, Lexeme)):
        yield node.item


def productive(rules: Rules) -> Rules:
    """The rules without what no finite text can be made of; no ``root`` is left if that is everything."""
    known: set[str] = set()
    while True:
        found = {name for name, node in rules.items() if _pruned(node, known) is not None}
        if found == known:
            break
        known = found
    kept = {name: _pruned(rules[name], known) for name in rules if name in known}
    return {name: node for name, node in kept.items() if node is not None}


def _pruned(node: Node, known: set[str]) -> Node | None:
    """``node`` less the options that need rules which are not in ``known``; None if nothing is left."""
    if isinstance(node, Rule):
        return node if node.name in known else None
    if isinstance(node, Chars):
        return node if node.ranges else None
    if isinstance(node, Lexeme):
        return node
    if isinstance(node, Repeat):
        item = _pruned(node.item, known) if node.most != 0 else None
        if item is None:
            return None if node.least else EMPTY
        return Repeat(item, node.least, node.most)
    if isinstance(node, Choice):
        options = [option for option in (_pruned(one, known) for one in node.options) if option is not None]
        return choice(*options) if options else None
    items = [_pruned(item, known) for item in node.items]
    return None if None in items else Sequence(tuple(items))


def is_unguarded(rules: Rules) -> bool:
    """Whether a rule may begin with itself, which left-to-right parsers cannot follow."""
    empty: set[str] = set()  # rules that the empty text is in
    while found := {name for name in rules if name not in empty and _may_be_empty(rules[name], empty)}:
        empty |= found
    first = {name: set(_beginnings(node, empty)) for name, node in rules.items()}
    for name in rules:
        seen, todo = set(), [name]
        while todo:
            for other in first[todo.pop()] - seen:
                seen.add(other)
                todo.append(other)
        if name in seen:
            return True
    return False


def _beginnings(node: Node, empty: set[str]) -> Iterator[str]:
    """The rules that a text of ``node`` may begin with."""
    if isinstance(node, Rule):
        yield node.name
    for part in parts(node):
        yield from _beginnings(part, empty)
        if isinstance(node, Sequence) and not _may_be_empty(part, empty):
            return


def _may_be_empty(node: Node, empty: set[str]) -> bool:
    if isinstance(node, Rule):
        return node.name in empty
    if isinstance(node, Until):
        return node.last is None
    if isinstance(node, Repeat) and node.least == 0:
        return True
    if isinstance(node, Choice):
        return any(_may_be_empty(option, empty) for option in node.options)
    return not isinstance(node, Chars) and all(_may_be_empty(part, empty) for part in parts(node))
