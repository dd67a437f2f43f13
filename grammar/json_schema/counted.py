"""The members of JSON objects where their number is bounded."""

from __future__ import annotations

from collections.abc import Callable, Collection

from ...errors import GrammarError
from ..tree import EMPTY, Node, Repeat, choice, optional, sequence
from .kinds import NoValue
from .tokens import ITEM, member_name

_MAX_RULES = 4000


def counted_members(
    declared: dict[str, Node],
    required: Collection[str],
    extra: Node | None,
    least: int,
    most: int | None,
    share: Callable[[Node], Node],
) -> Node:
    """What stands between the braces: ``least`` to ``most`` members, as :func:`.objects.members` has them.

    Raises NoValue if there cannot be so many, GrammarError where that takes too many rules.
    """
    if extra is None and least > len(declared):
        raise NoValue(f"minProperties {least} is more than the {len(declared)} properties there can be")
    enough = max(
        1, least if most is None else min(most, len(declared))
    )  # counts above are as good, or cannot be
    if (len(declared) + 1) * (enough + 1) > _MAX_RULES:
        raise GrammarError(
            f"minProperties and maxProperties are supported for at most {_MAX_RULES} properties times their"
            " number"
        )
    rests = {count: _last(extra, count, least, most) for count in range(enough + 1)}
    for name in reversed(declared):
        member = share(sequence(member_name(name), declared[name]))
        before: dict[int, Node | None] = {}
        for count in range(enough + 1):
            options = []
            after = min(count + 1, enough) if most is None else count + 1
            if after <= enough and (rest := rests[after]) is not None:
                options.append(sequence(ITEM if count else EMPTY, member, rest))
            if name not in required and (rest := rests[count]) is not None:
                options.append(rest)
            before[count] = share(choice(*options)) if options else None
        rests = before
    if rests[0] is None:
        raise NoValue(f"no object has {least} to {most} properties")
    return rests[0]


def _last(extra: Node | None, count: int, least: int, most: int | None) -> Node | None:
    """What may stand behind ``count`` declared members; None: something is missing."""
    missing = max(least - count, 0)
    if extra is None or (most is not None and count >= most):
        return EMPTY if not missing and (most is None or count <= most) else None
    if missing > 1:
        return None  # names may repeat, and a repeated one counts once
    further = Repeat(sequence(ITEM, extra), 0, None if most is None else most - count - 1)
    node = sequence(ITEM if count else EMPTY, extra, further)
    return node if missing else optional(node)
