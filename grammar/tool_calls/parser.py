"""The state machine that finds tool calls in a text while it arrives."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar, Final, Protocol

from ..json_text import is_object, read_object, read_string, read_value
from ..pieces import SPACE, Malformed, Reading, Source
from .events import ArgumentsDelta, CallEnd, CallStart, CallWithdrawn, Event, Findings, TextDelta

logger = logging.getLogger("rootlet.grammar")

_KEYS: Final = ("name", "arguments", "parameters", "id", "type")


class Format(Protocol):
    """What the parser needs of a :class:`.formats.ToolCallFormat`."""

    start: ClassVar[str]
    bare: ClassVar[bool]

    def read(self, parser: ToolCallParser) -> Reading[None]:
        """Read what follows ``start``."""


@dataclass
class _Call:
    """The call being read: where its arguments stand in the source, and how much of them was reported."""

    index: int | None = None  # None: its name is not known yet
    has_arguments: bool = False
    text: str | None = None  # the arguments, if they do not stand in the source as they are
    start: int | None = None
    end: int | None = None
    sent: int = 0


class ToolCallParser:
    """Finds calls of the tools ``names`` in text fed piece by piece; the pieces may be cut anywhere.

    Nothing is lost and nothing raises: what is not a call of a known tool in the given format, written in
    valid JSON (its arguments may be a string that holds the object), comes out as text. White space in front
    of a call, or between the last call and the end, does not. The arguments of a call are reported while they
    are written, as soon as its name is known; a call that turns out malformed after that is withdrawn, and
    all its text follows as text.
    """

    def __init__(self, tool_format: Format, names: Collection[str]) -> None:
        self.source = Source()
        self._format = tool_format
        self._names = frozenset(names)
        self._events: list[Event] = []
        self._call: _Call | None = None
        self._in_text = False
        self._is_bare = False  # in a block that nothing announced
        self._after_call = False  # nothing but white space since the last call
        self._num_calls = 0
        self._reading = self._read()

    def feed(self, piece: str) -> list[Event]:
        """Take in more text; return what it shows."""
        self.source.push(piece)
        return self._advance()

    def finish(self) -> list[Event]:
        """Return what was held back, now that the text has ended."""
        self.source.ended = True
        return self._advance()

    # ---- for formats -------------------------------------------------------------------------------

    def call(self) -> Reading[None]:
        """Read a call written as one JSON object with name and arguments (or parameters)."""
        call = self._call = _Call()
        yield from read_object(self.source, lambda key: self._read_member(call, key))
        self._end(call)

    def arguments(self, name: str) -> Reading[None]:
        """Read the arguments of a call whose name stands elsewhere."""
        call = self._call = _Call()
        self._announce(call, name)
        yield from self._read_arguments(call)
        self._end(call)

    # ---- the machine -------------------------------------------------------------------------------

    def _advance(self) -> list[Event]:
        next(self._reading, None)
        if self._in_text:
            self._emit_text(self.source.position)
        elif self._call is not None:
            self._emit_arguments(self._call)
        events, self._events = self._events, []
        return events

    def _read(self) -> Reading[None]:
        source = self.source
        if self._format.bare:
            yield from source.space()
            if (yield from source.peek()) == "{":
                self._is_bare = True
                yield from self._read_block()
                self._is_bare = False
            else:
                source.position = 0
        while True:
            self._in_text = True
            found = yield from source.find(self._format.start)
            if found < 0:
                break
            text = source.text[:found].rstrip(SPACE)
            self._emit_text(len(text))
            source.position = found - len(text) + len(self._format.start)
            self._in_text = False
            yield from self._read_block()
        if self._after_call and not source.text.strip(SPACE):
            source.drop(len(source.text))
        self._emit_text(len(source.text))

    def _read_block(self) -> Reading[None]:
        try:
            yield from self._format.read(self)
        except Malformed:
            if self._call is not None and self._call.index is not None:
                self._emit_arguments(self._call)
                self._events.append(CallWithdrawn(self._call.index))
            self._call = None
            self._emit_text(self.source.position)
        else:
            self.source.drop(self.source.position)

    def _read_member(self, call: _Call, key: str) -> Reading[None]:
        if key == "name":
            if call.index is not None:
                raise Malformed
            self._announce(call, (yield from read_string(self.source)))
        elif key in ("arguments", "parameters"):
            yield from self._read_arguments(call)
        elif self._is_bare and key not in _KEYS:
            raise Malformed  # some other JSON: show it without waiting for its end
        else:
            yield from read_value(self.source)

    def _read_arguments(self, call: _Call) -> Reading[None]:
        if call.has_arguments:
            raise Malformed
        call.has_arguments = True
        first = yield from self.source.peek()
        if first == "{":
            call.start = call.sent = self.source.position
            yield from read_value(self.source)
            call.end = self.source.position
        elif first == '"':
            call.text = _unwrapped((yield from read_string(self.source)))
        elif first == "n":
            yield from read_value(self.source)  # null: none
        else:
            raise Malformed

    def _announce(self, call: _Call, name: str) -> None:
        if name not in self._names:
            logger.warning("The model called the tool %r, which it was not given; left as text", name)
            raise Malformed
        call.index = self._num_calls
        self._num_calls += 1
        self._events.append(CallStart(call.index, name))

    def _end(self, call: _Call) -> None:
        if call.index is None:
            raise Malformed
        if call.start is None:
            arguments = call.text or "{}"
            self._events.append(ArgumentsDelta(call.index, arguments))
        else:
            arguments = self.source.text[call.start : call.end]
            self._emit_arguments(call)
        self._events.append(CallEnd(call.index, arguments))
        self._call = None
        self._after_call = True
        self.source.drop(self.source.position)

    def _emit_arguments(self, call: _Call) -> None:
        if call.index is None or call.start is None:
            return
        end = self.source.position if call.end is None else call.end
        if end > call.sent:
            self._events.append(ArgumentsDelta(call.index, self.source.text[call.sent : end]))
            call.sent = end

    def _emit_text(self, count: int) -> None:
        text = self.source.drop(count)
        if text:
            self._after_call = False
            self._events.append(TextDelta(text))


def _unwrapped(text: str) -> str:
    """The arguments that a string holds."""
    if not text.strip(SPACE):
        return "{}"
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair: nobody could write it down
        raise Malformed from None
    if not is_object(text):
        raise Malformed
    return text


def parse(tool_format: Format, names: Collection[str], text: str) -> Findings:
    """The text outside calls, and the calls, of a whole text."""
    parser, findings = ToolCallParser(tool_format, names), Findings()
    findings.add(parser.feed(text))
    findings.add(parser.finish())
    return findings
