"""The members of JSON objects as trees: declared ones in their order, some of them optional, and others."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from ...errors import GrammarError
from ..tree import EMPTY, Node, Repeat, choice, optional, sequence
from .tokens import ITEM, member_name

_AT_ONCE = 4  # runs of members that make a longer one; what xgrammar does grows with the square of the rules


class _Run(NamedTuple):
    """Members that follow each other: at least one where none came before, and any of them behind others.

    ``first`` is None where one came before in any case.
    """

    first: Node | None
    rest: Node


def list_of(node: Node) -> Node:
    """One or more, with commas between them."""
    return sequence(node, Repeat(sequence(ITEM, node), 0, None))


def members(
    declared: Mapping[str, Node], required: Collection[str], extra: Node | None, share: Callable[[Node], Node]
) -> Node:
    """What stands between the braces of an object that is not empty.

    Args:
        declared: values by name, in order; members not in ``required`` may be left out.
        extra: any member beyond those, which come last; None if there are none.
        share: called for nodes that are used more than once.
    """
    runs: list[_Run] = []
    needed, is_begun = set(required), False
    all_needed = declared.keys() <= needed
    for name, value in declared.items():
        member = sequence(member_name(name), value if all_needed else share(value))
        further = sequence(ITEM, member)
        rest = further if name in needed else share(optional(further))
        runs.append(_Run(None if is_begun else member, rest))
        is_begun = is_begun or name in needed
    if extra is not None:
        first = None if is_begun else list_of(extra)
        runs.append(_Run(first, Repeat(sequence(ITEM, extra), 0, None)))
    while len(runs) > _AT_ONCE and not all_needed:
        parts = [runs[at : at + _AT_ONCE] for at in range(0, len(runs), _AT_ONCE)]
        runs = [
            _Run(None if part[0].first is None else share(_first(part)), share(_rest(part))) for part in parts
        ]
    return _first(runs)


def _first(runs: list[_Run]) -> Node:
    options = [(run.first, _rest(runs[at + 1 :])) for at, run in enumerate(runs) if run.first is not None]
    return choice(*(sequence(first, rest) for first, rest in options))


def _rest(runs: list[_Run]) -> Node:
    return sequence(*(run.rest for run in runs))


def any_members(extra: Node | None, least: int, most: int | None) -> Node:
    """What stands between the braces where no members are declared.

    Raises GrammarError for bounds that cannot be enforced.
    """
    if extra is None or most == 0:
        if least:
            raise GrammarError(f"minProperties {least} is more than the properties there can be")
        return EMPTY
    if least > 1:  # names may repeat, and a repeated one counts once
        raise GrammarError("minProperties above 1 is supported for declared properties only")
    inner = sequence(extra, Repeat(sequence(ITEM, extra), 0, None if most is None else most - 1))
    return inner if least else optional(inner)
