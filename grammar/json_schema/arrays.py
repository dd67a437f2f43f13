"""The items of JSON arrays as trees: declared ones in their places, further ones, and distinct ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence

from ...errors import GrammarError
from ..tree import EMPTY, Node, Repeat, Rule, choice, optional, sequence
from .kinds import NoValue
from .tokens import ITEM

_MAX_SETS = 256  # of values that are left: the rules of different items
_MAX_RULES = 2000


def items(first: Sequence[Node], more: Node | None, least: int, most: int | None) -> Node:
    """``least`` to ``most`` items, without the brackets: ``first`` in their places, and ``more`` after them.

    Raises NoValue if there cannot be so many.
    """
    first = first[:most]
    room = None if most is None else most - len(first)
    tail: Node = EMPTY  # what follows the declared items
    if more is not None and room != 0:
        wanted = max(least - len(first), 0)
        if not first:
            inner = sequence(more, Repeat(sequence(ITEM, more), max(wanted - 1, 0), room and room - 1))
            return inner if least else optional(inner)
        tail = Repeat(sequence(ITEM, more), wanted, room)
    elif least > len(first):
        raise NoValue(f"minItems {least} is more than the {len(first)} items there can be")
    for i in reversed(range(len(first))):
        node = sequence(ITEM, first[i], tail) if i else sequence(first[i], tail)
        tail = node if i < least else optional(node)
    return tail


def distinct_items(
    values: Sequence[Node], least: int, most: int | None, share: Callable[[Node], Node]
) -> Node | None:
    """The same for items of these values, none of them twice; None if that takes too many rules.

    ``share`` is called for nodes that are used more than once. Raises NoValue if there cannot be so many.
    """
    if least > len(values):
        raise NoValue(f"minItems {least} is more than the {len(values)} different items there can be")
    most = len(values) if most is None else min(most, len(values))
    if sum(math.comb(len(values), count) for count in range(min(most, 16) + 1)) > _MAX_SETS:
        return None
    return _in_any_order(values, least, most, share)


def _in_any_order(values: Sequence[Node], least: int, most: int, share: Callable[[Node], Node]) -> Node:
    rests: dict[frozenset[int], Node] = {}

    def rest(left: frozenset[int]) -> Node:
        """What may follow when these values are left."""
        if left not in rests:
            count = len(values) - len(left)
            comma = ITEM if count else EMPTY
            steps = (
                [sequence(comma, values[i], rest(left - {i})) for i in sorted(left)] if count < most else []
            )
            node = choice(*steps) if steps else EMPTY
            rests[left] = share(node if count < least or not steps else optional(node))
        return rests[left]

    return rest(frozenset(range(len(values))))


def containing(
    at: Callable[[int], tuple[Node, Node, Node] | None],
    settled: int,
    wanted: tuple[int, int | None],
    length: tuple[int, int | None],
    rule: Callable[[Hashable, Callable[[], Node]], Node],
) -> Node:
    """Items of which a number is of a kind.

    Args:
        at: the items that may stand in a place: those of the kind, those that are not, any. None: no item.
        settled: the place from which on all are alike.
        wanted, length: how many of the kind there must and may be, and how many in all.
        rule: a rule of a name, made by a function if it is new, as rests lead back to themselves.

    Raises GrammarError for counts that need too many rules.
    """
    least, most = wanted
    shortest, longest = length
    last = max(settled, shortest) if longest is None else longest
    enough = least if most is None else max(least, most)
    if (last + 1) * (enough + 1) > _MAX_RULES:
        raise GrammarError(f"contains within more than {_MAX_RULES} places times counts is not supported")

    def rest(place: int, count: int) -> Node:
        return rule((place, count), lambda: what_follows(place, count))

    def what_follows(place: int, count: int) -> Node:
        options: list[Node] = [EMPTY] if place >= shortest and count >= least else []
        items = at(place) if longest is None or place < longest else None
        if items is not None:
            kind, others, anything = items
            comma = ITEM if place else EMPTY
            after = place + 1 if longest is not None else min(place + 1, max(last, 1))
            if most is None or count < most:
                options.append(sequence(comma, kind, rest(after, min(count + 1, enough))))
            options.append(sequence(comma, anything if most is None else others, rest(after, count)))
        return choice(*options) if options else Rule("nothing")

    return rest(0, 0)
