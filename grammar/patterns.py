"""Patterns of JSON schemas: expressions of ECMA-262 that are to be found somewhere in a text.

Anchors may stand in options and groups, and lookaheads behind the ``^`` that begins the pattern. A tree of
this module describes whole texts.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

from ..errors import GrammarError
from .budget import Budget, shortened
from .regex import Anchor, Lookahead, parse_ecma
from .tree import (
    EMPTY,
    Chars,
    Choice,
    Every,
    Node,
    Not,
    Repeat,
    Sequence,
    choice,
    codes,
    complement,
    possible,
    sequence,
)

ANYTHING = Repeat(Chars(complement(())), 0, None)
_LINE_END = Repeat(Chars(codes("\n")), 0, 1)


def search(pattern: str, budget: Budget | None = None, *, widest: bool = False) -> Node:
    """The texts in which a pattern is found, whoever reads it; with ``widest``, those where anybody finds it.

    Raises GrammarError that names what is not supported, or what is wrong.
    """
    budget = budget or Budget()
    node = parse_ecma(pattern, budget, widest=widest)
    items = node.items if isinstance(node, Sequence) else (node,)
    looks = list(itertools.takewhile(lambda item: isinstance(item, Lookahead), items[1:]))
    if items[:1] == (Anchor(True),) and looks:
        rest = Sequence((Anchor(True), *items[1 + len(looks) :]))
        found = [_found(rest, pattern, budget, widest=widest)]
        for look in looks:
            inside = Sequence((Anchor(True), look.item))
            there = _found(inside, pattern, budget, widest=widest == look.is_wanted)
            found.append(there if look.is_wanted else Not(there))
        return Every(tuple(found))
    return _found(node, pattern, budget, widest=widest)


class _Match(NamedTuple):
    """What a part matches, and whether that must begin and end where the text does."""

    begins: bool
    ends: bool
    node: Node


def _found(node: Node, pattern: str, budget: Budget, *, widest: bool) -> Node:
    last = _LINE_END if widest else EMPTY  # Python's $ is also before a newline at the end
    options = [
        sequence(EMPTY if begins else ANYTHING, inner, last if ends else ANYTHING)
        for begins, ends, inner in _matches(node, pattern, budget)
    ]
    return possible(choice(*options), budget) if options else Chars(())


def _matches(node: Node, pattern: str, budget: Budget) -> list[_Match]:
    budget.spend(1, f"the pattern {shortened(pattern)}")
    if isinstance(node, Anchor):
        return [_Match(node.is_begin, not node.is_begin, EMPTY)]
    if isinstance(node, Lookahead):
        name = "a lookahead" if node.is_wanted else "a negative lookahead"
        raise GrammarError(
            f"regex {pattern!r} uses {name} elsewhere than behind the ^ at its beginning, which constrained"
            " decoding does not support. Write the pattern without it."
        )
    if isinstance(node, Choice):
        return _together(itertools.chain(*(_matches(option, pattern, budget) for option in node.options)))
    if isinstance(node, Repeat):
        return _repeated(node, pattern, budget)
    if isinstance(node, Sequence):
        found = [_Match(False, False, EMPTY)]
        for item in node.items:
            found = _together(
                _behind(one, other) for one in found for other in _matches(item, pattern, budget)
            )
        return found
    return [_Match(False, False, node)]


def _behind(first: _Match, second: _Match) -> _Match | None:
    """One behind the other; None if no text has that."""
    one, other = first.node, second.node
    if first.ends:
        if not _may_be_empty(other):
            return None
        other = EMPTY
    if second.begins:
        if not _may_be_empty(one):
            return None
        one = EMPTY
    return _Match(first.begins or second.begins, first.ends or second.ends, sequence(one, other))


def _repeated(node: Repeat, pattern: str, budget: Budget) -> list[_Match]:
    """Only the first of several may begin a text, and only the last may end it."""
    inner = _matches(node.item, pattern, budget)
    free = [match.node for match in inner if not (match.begins or match.ends)]
    if len(free) == len(inner):
        return [_Match(False, False, node._replace(item=choice(*free)))]
    between = choice(*free) if free else Chars(())

    def rest(count: int) -> _Match:
        """Further ones, ``count`` fewer than there may be."""
        most = None if node.most is None else node.most - count
        return _Match(False, False, Repeat(between, max(node.least - count, 0), most))

    found: list[_Match | None] = [rest(0)] if free or not node.least else []
    first = [match for match in inner if match.begins and not match.ends]
    last = [match for match in inner if match.ends and not match.begins]
    if node.most is None or node.most >= 1:
        found += [match for match in inner if match.begins and match.ends and node.least <= 1]
        found += [_behind(match, rest(1)) for match in first] + [_behind(rest(1), match) for match in last]
    if node.most is None or node.most >= 2:
        for one, other in itertools.product(first, last):
            inside = _behind(one, rest(2))
            found += [inside and _behind(inside, other)]
    return _together(found)


def _together(matches) -> list[_Match]:
    """Those with the same ends as one."""
    by_ends: dict[tuple[bool, bool], list[Node]] = {}
    for match in matches:
        if match is not None:
            by_ends.setdefault((match.begins, match.ends), []).append(match.node)
    return [_Match(*ends, choice(*nodes)) for ends, nodes in by_ends.items()]


def _may_be_empty(node: Node) -> bool:
    if isinstance(node, Chars):
        return False
    if isinstance(node, Repeat):
        return node.least == 0 or _may_be_empty(node.item)
    if isinstance(node, Choice):
        return any(map(_may_be_empty, node.options))
    return all(map(_may_be_empty, node.items))
