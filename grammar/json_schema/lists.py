"""The lists that an option describes (``options.py``): their items, in places, distinct, or of a kind."""

from __future__ import annotations

from typing import Any

from ...errors import GrammarError
from ..tree import Node, Rule, choice, sequence, word
from .arrays import containing, distinct_items, items
from .context import Context, sizes
from .drafts import OPEN
from .kinds import ATOMS, key
from .options import all_of, none_of
from .tokens import BEGIN_LIST, CAREFUL, END_LIST, FREE, constant

_FEW: dict[str, tuple] = {"boolean": (True, False), "null": (None,)}


def array(option: dict, path: str, context: Context) -> Node:
    """Lists of an option. Raises GrammarError, and NoValue if there are none."""
    least, most = sizes(option, "Items")
    first = option.get("prefixItems", [])
    rest = option.get(
        "items", not first or OPEN in option
    )  # a declared tuple is closed unless it says otherwise
    is_distinct = option.get("uniqueItems") and most != 1 and (rest is not False or len(first) > 1)
    if option.get("contains"):
        return sequence(BEGIN_LIST, _containing(option, first, rest, path, context), END_LIST)
    if is_distinct and not first:
        return _distinct(rest, least, most, path, context)
    nodes = [context.node(one, f"{path}/prefixItems/{i}") for i, one in enumerate(first)]
    more = None if rest is False else context.share(context.node(rest, f"{path}/items"))
    return _list(items(nodes, more, least, most), CAREFUL if is_distinct else None)


def _list(inner: Node, mark: str | None) -> Node:
    """A list, perhaps with a mark as another way to go on."""
    if mark is None:
        return sequence(BEGIN_LIST, inner, END_LIST)
    return sequence(BEGIN_LIST, choice(sequence(inner, END_LIST), word(mark)))


def _distinct(rest: Any, least: int, most: int | None, path: str, context: Context) -> Node:
    """Lists of different items: written out where there are few, else marked."""
    options = context.options(rest, f"{path}/items")
    listed = [ones for ones in map(_values, options) if ones is not None]
    if len(listed) == len(options):
        values = {key(one): constant(one) for ones in listed for one in ones}
        inner = distinct_items(list(values.values()), least, most, context.share)
        if inner is not None:
            return sequence(BEGIN_LIST, inner, END_LIST)
    more = context.share(context.node(rest, f"{path}/items"))
    return _list(items([], more, least, most), FREE if all(map(_is_free, options)) else CAREFUL)


def _values(option: dict) -> list | None:
    """All values of an option, None if they cannot be listed."""
    if "enum" in option:
        return option["enum"]
    kinds = option.get("type", ATOMS)
    if not set(kinds) <= set(_FEW):
        return None
    excluded = [key(one) for one in option.get("excluded", ())]
    return [one for name in kinds for one in _FEW[name] if key(one) not in excluded]


def _is_free(option: dict) -> bool:
    """Whether its values are texts each of which may go on in any way."""
    return option.get("type") == ["string"] and set(option) <= {"type", "minLength"}


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
