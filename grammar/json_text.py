"""Reading JSON (RFC 8259) while it is written: the first character that cannot be right ends it."""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Callable
from typing import Final

from .pieces import Malformed, Reading, Source

MAX_DEPTH: Final = 128
"""Objects and lists may be nested so deeply; deeper text counts as malformed."""

_DIGITS: Final = "0123456789"
_PLAIN: Final = re.compile(r'[^"\\\x00-\x1f]*')  # what stands in strings for itself
_LITERALS: Final = {"t": "true", "f": "false", "n": "null"}


def read_value(source: Source, depth: int = 0) -> Reading[None]:
    """Read a value. Raises Malformed at the first character that no value can have there."""
    if depth > MAX_DEPTH:
        raise Malformed
    first = yield from source.peek()
    if first == "{":
        yield from read_object(source, lambda key: read_value(source, depth + 1))  # noqa: ARG005
    elif first == "[":
        yield from _read_list(source, depth)
    elif first == '"':
        yield from read_string(source)
    elif first in _LITERALS:
        for character in _LITERALS[first]:
            yield from source.expect(character)
    else:
        yield from _read_number(source)


def read_object(source: Source, read_member: Callable[[str], Reading[None]]) -> Reading[None]:
    """Read an object; ``read_member(key)`` reads the value of each key."""
    yield from source.expect("{")
    yield from source.space()
    if (yield from source.peek()) == "}":
        source.position += 1
        return
    while True:
        key = yield from read_string(source)
        yield from source.space()
        yield from source.expect(":")
        yield from source.space()
        yield from read_member(key)
        yield from source.space()
        if (yield from source.expect(",}")) == "}":
            return
        yield from source.space()


def read_string(source: Source) -> Reading[str]:
    """Read a string and return what it says."""
    start = source.position
    yield from source.expect('"')
    while True:
        character = yield from source.peek()
        if character == '"':
            source.position += 1
            return json.loads(source.text[start : source.position])
        if character == "\\":
            source.position += 1
            if (yield from source.expect('"\\/bfnrtu')) == "u":
                for _ in range(4):
                    yield from source.expect("0123456789abcdefABCDEF")
        elif character < " ":  # a control character, or the end of the text
            raise Malformed
        else:
            plain = _PLAIN.match(source.text, source.position)
            assert plain is not None  # this character at least
            source.position = plain.end()


def is_object(text: str) -> bool:
    """Whether ``text``, as a whole, is an object."""
    source = Source()
    source.push(text)
    source.ended = True
    try:
        deque(_read_document(source), maxlen=0)  # a source that has ended never lets it pause
    except Malformed:
        return False
    return True


def _read_document(source: Source) -> Reading[None]:
    yield from source.space()
    if (yield from source.peek()) != "{":
        raise Malformed
    yield from read_value(source)
    yield from source.space()
    if (yield from source.peek()):
        raise Malformed


def rewrite(text: str) -> str:
    """A valid JSON text as Python writes its value, characters beyond ASCII as they are.

    Text whose value Python cannot hold, or could not write as UTF-8 or JSON again, stays as it is.
    """
    try:
        written = json.dumps(json.loads(text), ensure_ascii=False, allow_nan=False)
        written.encode()
    except ValueError:  # thousands of digits, 1e999, half a surrogate pair
        return text
    return written


def _read_list(source: Source, depth: int) -> Reading[None]:
    yield from source.expect("[")
    yield from source.space()
    if (yield from source.peek()) == "]":
        source.position += 1
        return
    while True:
        yield from read_value(source, depth + 1)
        yield from source.space()
        if (yield from source.expect(",]")) == "]":
            return
        yield from source.space()


def _read_number(source: Source) -> Reading[None]:
    if (yield from source.peek()) == "-":
        source.position += 1
    if (yield from source.expect(_DIGITS)) != "0":
        yield from _read_digits(source)
    if (yield from source.peek()) == ".":
        source.position += 1
        yield from source.expect(_DIGITS)
        yield from _read_digits(source)
    if (yield from source.peek()) in ("e", "E"):
        source.position += 1
        if (yield from source.peek()) in ("+", "-"):
            source.position += 1
        yield from source.expect(_DIGITS)
        yield from _read_digits(source)


def _read_digits(source: Source) -> Reading[None]:
    while (character := (yield from source.peek())) and character in _DIGITS:
        source.position += 1
