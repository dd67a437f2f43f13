"""The objects that an option describes (``options.py``): declared members, and others by their names."""

from __future__ import annotations

import itertools
from typing import Any

from ...errors import GrammarError
from ..automaton import NoText
from ..tree import Node, choice, optional, sequence
from .context import Context, sizes
from .counted import counted_members
from .kinds import NoValue
from .objects import any_members, members
from .options import all_of, declared, is_closed, merge
from .tokens import BEGIN_OBJECT, END_OBJECT, MEMBER, constant

_MAX_PATTERNS = 6  # names are told apart by which of them they match


def mapping(option: dict, path: str, context: Context) -> Node:
    """Objects of an option. Raises GrammarError, and NoValue if there are none."""
    shapes = option.get("members", [])
    required = option.get("required", [])
    names: dict[str, Node] = {}
    for name in dict.fromkeys((*declared(option), *required)):
        schema = _of_property(name, option, context)
        if schema is not False:
            names[name] = context.node(schema, f"{path}/properties/{name}")
        elif name in required:
            raise NoValue(f"required property {name!r} is not among those there may be")
    spoken_of = {name for properties, _, _ in shapes for name in properties} | set(required)
    extra = _others(option, spoken_of, path, context)
    if extra is not None:
        extra = context.share(extra)  # it stands at several places
    least, most = sizes(option, "Properties")
    if most is not None and most < len(required):
        raise NoValue(f"maxProperties {most} is less than the {len(required)} that are required")
    if not names:
        inner = any_members(extra, least, most)
    elif least > max(len(required), 1) or (most is not None and (extra is not None or most < len(names))):
        inner = counted_members(names, set(required), extra, least, most, context.share)
    else:
        inner = members(names, required, extra, context.share)
        inner = inner if required or least else optional(inner)
    return sequence(BEGIN_OBJECT, inner, END_OBJECT)


def _of_property(name: str, option: dict, context: Context) -> Any:
    """The schema of a member of this name."""
    parts = []
    for schema in option.get("propertyNames", ()):
        if not context.judge(schema, name):
            return False
    for properties, patterns, others in option.get("members", ()):
        matched = {pattern: context.judge.found(pattern, name) for pattern in patterns}
        parts += [patterns[pattern] for pattern, verdict in matched.items() if verdict is not False]
        if name in properties:
            parts.append(properties[name])
        elif others is not None and True not in matched.values():
            parts.append(others)
    return all_of(*parts)


def _others(option: dict, spoken_of: set[str], path: str, context: Context) -> Node | None:
    """A member beyond those; None if there are none."""
    shapes = option.get("members", [])
    every = list(dict.fromkeys(pattern for _, patterns, _ in shapes for pattern in patterns))
    if len(every) > _MAX_PATTERNS:
        raise GrammarError(f"more than {_MAX_PATTERNS} patternProperties of one object are not supported")
    closed = is_closed(option)
    found = []
    for chosen in itertools.product((True, False), repeat=len(every)):
        matched = {pattern for pattern, is_matched in zip(every, chosen) if is_matched}
        if closed and not matched:
            continue
        parts = []
        for _, patterns, others in shapes:
            here = [schema for pattern, schema in patterns.items() if pattern in matched]
            parts += here if here or others is None else [others]
        schema = all_of(*parts)
        if schema is False:
            continue
        text = {"type": ["string"], "pattern": sorted(matched, key=every.index)}
        text |= {"no_pattern": [pattern for pattern in every if pattern not in matched]}
        text |= {"excluded": sorted(spoken_of)}
        name = _names(text, option.get("propertyNames", []), path, context)
        if name is not None:
            at = "additionalProperties" if not matched else f"patternProperties/{min(matched)}"
            found.append(sequence(name, MEMBER, context.node(schema, f"{path}/{at}")))
    return choice(*found) if found else None


def _names(text: dict, schemas: list, path: str, context: Context) -> Node | None:
    """The names that are such a text and meet ``propertyNames``; None if there are none."""
    options = context.options(all_of(*schemas), f"{path}/propertyNames")
    found: list[Node] = []
    for option in options:
        both = merge(text, option, context.judge)
        if both is None:
            continue
        if "enum" in both:
            found += map(constant, both["enum"])
            continue
        try:
            found.append(context.strings(both))
        except (NoValue, NoText):
            continue
    return choice(*found) if found else None
