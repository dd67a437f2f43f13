"""Patterns of JSON schemas: expressions of ECMA-262 that are to be found somewhere in a text.

Anchors may stand in options and groups, and lookaheads behind the ``^`` that begins the pattern. A tree of
this module describes whole texts.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

from ..errors import GrammarError
from .budget import Budget, shortened
from .regex import parse_ecma
from .tree import (
    EMPTY,
    Anchor,
    Chars,
    Choice,
    Every,
    Lookahead,
    Node,
    Not,
    Repeat,
    Sequence,
    choice,
    codes,
    complement,
    parts,
    possible,
    sequence,
)

ANYTHING = Repeat(Chars(complement(())), 0, None)
_REPEATED = (64, 32, 16, 8)  # how often at most, where a length must be kept
_LINE_END = Repeat(Chars(codes("\n")), 0, 1)


def search(pattern: str, budget: Budget | None = None, *, widest: bool = False) -> Node:
    """The texts in which a pattern is found, whoever reads it; with ``widest``, those where anybody finds it.

    Raises GrammarError that names what is not supported, or what is wrong.
    """
    budget = budget or Budget()
    node = parse_ecma(pattern, budget, widest=widest)
    items = node.items if isinstance(node, Sequence) else (node,)
    looks: list[Lookahead] = []
    for item in items[1:]:
        if not isinstance(item, Lookahead):
            break
        looks.append(item)
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
    options = []
    for begins, ends, inner in _matches(node, pattern, budget):
        found = inner if begins else sequence(ANYTHING, _trimmed(inner, -1))
        options.append(sequence(found, last) if ends else sequence(_trimmed(found, 0), ANYTHING))
    return possible(choice(*options), budget) if options else Chars(())


def _trimmed(node: Node, side: int) -> Node:
    """``node`` where anything may stand beside it: what may be left out there makes no difference.

    ``side``: -1 is what stands before, 0 what stands behind.
    """
    if isinstance(node, Repeat) and node.most != node.least:
        return _trimmed(Repeat(node.item, node.least, node.least), side) if node.least else EMPTY
    if isinstance(node, Choice) and any(map(_may_be_empty, node.options)):
        return EMPTY
    if isinstance(node, Sequence) and node.items:
        at = -1 if side == 0 else 0
        end = _trimmed(node.items[at], side)
        if end == node.items[at]:
            return node
        rest = node.items[:-1] if side == 0 else node.items[1:]
        kept = (*rest, end) if side == 0 else (end, *rest)
        return _trimmed(sequence(*(rest if end == EMPTY else kept)), side) if rest or end != EMPTY else EMPTY
    return node


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
        return [_Match(False, False, replace(node, item=choice(*free)))]
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


def _together(matches: Iterable[_Match | None]) -> list[_Match]:
    """Those with the same ends as one."""
    by_ends: dict[tuple[bool, bool], list[Node]] = {}
    for match in matches:
        if match is not None:
            by_ends.setdefault((match.begins, match.ends), []).append(match.node)
    return [_Match(*ends, choice(*nodes)) for ends, nodes in by_ends.items()]


def within_length(node: Node, most: int) -> Node | None:
    """Texts in which a pattern is found, at most so long; None if that is not easily said.

    ``node`` is what :func:`search` gave. Of them those that what matches begins, and in which nothing is
    repeated more often than fits: a product of automata would have a state for each place and length.
    """
    if isinstance(node, Every):
        return None
    options = []
    for option in node.options if isinstance(node, Choice) else (node,):
        items = option.items if isinstance(option, Sequence) else (option,)
        options.append(sequence(*(items[1:] if items[:1] == (ANYTHING,) else items)))
    for often in _REPEATED:
        found = _limited(choice(*options), often)
        longest = _span(found)[1]
        if longest is not None and longest <= most:
            return found
    return None


def _limited(node: Node, often: int) -> Node:
    """``node`` with nothing repeated more than so often beyond what it must be, where there is no limit."""
    if isinstance(node, Repeat):
        most = node.least + often if node.most is None else node.most
        return Repeat(_limited(node.item, often), node.least, most)
    if isinstance(node, Choice):
        return Choice(tuple(_limited(option, often) for option in node.options))
    return (
        Sequence(tuple(_limited(item, often) for item in node.items)) if isinstance(node, Sequence) else node
    )


def _span(node: Node) -> tuple[int, int | None]:
    """How many characters a text has at least and at most; None is no limit."""
    if isinstance(node, Chars):
        return 1, 1
    if isinstance(node, Repeat):
        shortest, longest = _span(node.item)
        limit = None if longest is None or node.most is None else longest * node.most
        return shortest * node.least, limit
    assert isinstance(node, (Choice, Sequence))  # what else there is says no length
    spans = [_span(part) for part in parts(node)]
    least = [shortest for shortest, _ in spans] or [0]
    most = [longest for _, longest in spans if longest is not None]
    is_limited = len(most) == len(spans)
    if isinstance(node, Choice):
        return min(least), max(most, default=0) if is_limited else None
    return sum(least), sum(most) if is_limited else None


def _may_be_empty(node: Node) -> bool:
    if isinstance(node, Chars):
        return False
    if isinstance(node, Repeat):
        return node.least == 0 or _may_be_empty(node.item)
    if isinstance(node, Choice):
        return any(map(_may_be_empty, node.options))
    assert isinstance(node, Sequence)  # anchors and lookaheads have been taken out
    return all(map(_may_be_empty, node.items))
