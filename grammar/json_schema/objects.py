"""The members of JSON objects as trees: declared ones in their order, some of them optional, and others."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from ...errors import GrammarError
from ..tree import EMPTY, Node, Repeat, choice, optional, sequence
from .tokens import ITEM


def list_of(node: Node) -> Node:
    """One or more, with commas between them."""
    return sequence(node, Repeat(sequence(ITEM, node), 0, None))


def members(
    declared: Mapping[str, Node],
    required: Collection[str],
    extra: Node | None,
    least: int,
    most: int | None,
    share: Callable[[Node], Node],
) -> Node:
    """What stands between the braces.

    Args:
        declared: members by name, in order; those not in ``required`` may be left out.
        extra: any member beyond those, which come last; None if there are none.
        least, most: how many there must and may be.
        share: called for nodes that are used more than once.

    Raises GrammarError for bounds that cannot be enforced.
    """
    if not declared:
        return _open(extra, least, most)
    if least > max(len(set(required)), 1) or (
        most is not None and (extra is not None or most < len(declared))
    ):
        raise GrammarError(
            "minProperties and maxProperties that cut into declared properties are not supported"
        )
    all_required = set(declared) <= set(required)
    more = EMPTY if extra is None else Repeat(sequence(ITEM, extra), 0, None)
    begin: list[Node] = [] if extra is None else [sequence(extra, more)]  # where nothing came before
    must = False
    for name in reversed(declared):
        node = declared[name] if all_required else share(declared[name])
        first = sequence(node, more)
        if name in required:
            begin, must = [first], True
            more = sequence(ITEM, node, more)
        else:
            begin.insert(0, first)
            more = share(sequence(optional(sequence(ITEM, node)), more))
    inner = choice(*begin)
    return inner if must or least else optional(inner)


def _open(extra: Node | None, least: int, most: int | None) -> Node:
    """Members of any name."""
    if extra is None or most == 0:
        if least:
            raise GrammarError(f"minProperties {least} is more than the properties there can be")
        return EMPTY
    if least > 1:  # names may repeat, and a repeated one counts once
        raise GrammarError("minProperties above 1 is supported for declared properties only")
    inner = sequence(extra, Repeat(sequence(ITEM, extra), 0, None if most is None else most - 1))
    return inner if least else optional(inner)
