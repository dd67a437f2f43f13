"""The lists that an option describes (``options.py``): their items, in places, distinct, or of a kind."""

from __future__ import annotations

from typing import Any

from ...errors import GrammarError
from ..tree import Node, Rule, sequence
from .arrays import containing, distinct_items, items
from .context import Context, sizes
from .drafts import OPEN
from .kinds import ATOMS, key
from .options import all_of, none_of
from .tokens import BEGIN_LIST, END_LIST, constant

_FEW: dict[str, tuple] = {"boolean": (True, False), "null": (None,)}


def array(option: dict, path: str, context: Context) -> Node:
    """Lists of an option. Raises GrammarError, and NoValue if there are none."""
    least, most = sizes(option, "Items")
    first = option.get("prefixItems", [])
    rest = option.get(
        "items", not first or OPEN in option
    )  # a declared tuple is closed unless it says otherwise
    if option.get("contains"):
        inner = _containing(option, first, rest, path, context)
    elif option.get("uniqueItems") and most != 1 and (rest is not False or len(first) > 1):
        inner = _distinct(first, rest, least, most, path, context)
    else:
        nodes = [context.node(one, f"{path}/prefixItems/{i}") for i, one in enumerate(first)]
        more = None if rest is False else context.share(context.node(rest, f"{path}/items"))
        inner = items(nodes, more, least, most)
    return sequence(BEGIN_LIST, inner, END_LIST)


def _distinct(first: list, rest: Any, least: int, most: int | None, path: str, context: Context) -> Node:
    if first:
        raise GrammarError("uniqueItems together with prefixItems is not supported")
    values: dict[str, Node] = {}
    for option in context.options(rest, f"{path}/items"):
        found = option.get("enum")
        if found is None:
            kinds = option.get("type", ATOMS)
            if not set(kinds) <= set(_FEW):
                raise GrammarError(
                    "uniqueItems is supported for enum, const, boolean and null only: leave it out"
                )
            found = [one for name in kinds for one in _FEW[name]]
            found = [one for one in found if key(one) not in map(key, option.get("excluded", ()))]
        values |= {key(one): constant(one) for one in found}
    return distinct_items(list(values.values()), least, most, context.share)


def _containing(option: dict, first: list, rest: Any, path: str, context: Context) -> Node:
    if len(option["contains"]) > 1 or option.get("uniqueItems"):
        raise GrammarError("contains together with uniqueItems or another contains is not supported")
    [[wanted, least, most]] = option["contains"]

    def at(place: int) -> tuple[Node, Node, Node] | None:
        schema = first[place] if place < len(first) else rest
        if schema is False:
            return None
        here = f"{path}/prefixItems/{place}" if place < len(first) else f"{path}/items"
        kind = context.share(context.node(all_of(schema, wanted), here))
        others = Rule("nothing") if most is None else context.node(all_of(schema, none_of(wanted)), here)
        return kind, others, context.share(context.node(schema, here))

    return containing(at, len(first), (least, most), sizes(option, "Items"), context.rules(path))
