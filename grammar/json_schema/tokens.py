"""Fixed parts of JSON as trees. Each token is a word, so that every reading of a text cuts it alike."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ...errors import GrammarError
from ..tree import SIGN, Lexeme, Node, Words, choice, literal, sequence, word

ITEM, MEMBER = word(", "), word(": ")  # between items, and between a name and its value
BEGIN_LIST, END_LIST, BEGIN_OBJECT, END_OBJECT = map(word, "[]{}")

FREE, CAREFUL = SIGN + "u", SIGN + "v"
"""Marks behind the bracket of a list whose items must differ (``distinct_items.py``): such that can go on in
any way, and others."""


def number(node: Node) -> Lexeme:
    """Numbers as one token."""
    return Lexeme(node, in_states=False, is_open=True)


def constant(given: Any) -> Node:
    """Just this value. Raises GrammarError for what JSON cannot carry."""
    if isinstance(given, list):
        return sequence(BEGIN_LIST, *_separated([constant(one) for one in given]), END_LIST)
    if isinstance(given, dict):
        members = [sequence(member_name(key), constant(one)) for key, one in given.items()]
        return sequence(BEGIN_OBJECT, *_separated(members), END_OBJECT)
    is_number = isinstance(given, (int, float)) and not isinstance(given, bool)
    return number(literal(text_of(given))) if is_number else word(text_of(given))


def text_of(given: Any) -> str:
    """A string, number, boolean or null as it is written. Raises GrammarError for what JSON cannot carry."""
    try:
        text = json.dumps(given, ensure_ascii=False, allow_nan=False)
        text.encode()
    except (ValueError, UnicodeEncodeError):
        raise GrammarError("a number or character that JSON cannot carry") from None
    return text.replace("\x7f", "\\u007f")


def constants(values: Sequence[Any]) -> Node:
    """Any of these values: the strings among them are one word, and so are the numbers."""
    texts = [text_of(one) for one in values if isinstance(one, str)]
    numbers = [text_of(one) for one in values if type(one) in (int, float)]
    options: list[Node] = [constant(one) for one in values if type(one) not in (str, int, float)]
    if texts:
        options.append(word(texts[0]) if len(texts) == 1 else Lexeme(Words(tuple(dict.fromkeys(texts)))))
    if numbers:
        options.append(number(choice(*map(literal, numbers))))
    return choice(*options)


def member_name(text: str) -> Node:
    """The name of a member, and what parts it from the value."""
    return sequence(constant(text), MEMBER)


def _separated(nodes: list[Node]) -> list[Node]:
    return [part for node in nodes for part in (ITEM, node)][1:]
