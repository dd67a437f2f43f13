"""The items of JSON arrays as trees: declared ones in their places, further ones, and distinct ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...errors import GrammarError
from ..tree import EMPTY, Node, Repeat, choice, optional, sequence
from .tokens import ITEM

MAX_DISTINCT = 8  # values: the rules are those of their subsets


def items(first: Sequence[Node], more: Node | None, least: int, most: int | None) -> Node:
    """``least`` to ``most`` items, without the brackets: ``first`` in their places, and ``more`` after them.

    Raises GrammarError if there cannot be so many.
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
        raise GrammarError(f"minItems {least} is more than the {len(first)} items there can be")
    for i in reversed(range(len(first))):
        node = sequence(ITEM, first[i], tail) if i else sequence(first[i], tail)
        tail = node if i < least else optional(node)
    return tail


def distinct_items(
    values: Sequence[Node], least: int, most: int | None, share: Callable[[Node], Node]
) -> Node:
    """The same for items of these values in any order, none of them twice.

    ``share`` is called for nodes that are used more than once.

    Raises GrammarError for more than ``MAX_DISTINCT`` values, and if there cannot be so many items.
    """
    if least > len(values):
        raise GrammarError(f"minItems {least} is more than the {len(values)} different items there can be")
    if len(values) > MAX_DISTINCT:
        raise GrammarError(
            f"uniqueItems is supported for at most {MAX_DISTINCT} different values, got {len(values)}"
        )
    most = len(values) if most is None else min(most, len(values))
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
