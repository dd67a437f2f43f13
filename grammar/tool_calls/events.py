"""What a tool-call parser finds, in the order of the text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class TextDelta:
    """More text that belongs to no call."""

    text: str


@dataclass(frozen=True)
class CallStart:
    """A call of the tool ``name`` begins; ``index`` counts the calls of a text."""

    index: int
    name: str


@dataclass(frozen=True)
class ArgumentsDelta:
    """More of a call's arguments, as they are written; a call's deltas make up one JSON object."""

    index: int
    text: str


@dataclass(frozen=True)
class CallEnd:
    """A call is complete; ``arguments`` are all its deltas."""

    index: int
    arguments: str


@dataclass(frozen=True)
class CallWithdrawn:
    """A call that had begun is none: its text broke off or is malformed, and comes next, as text."""

    index: int


Event = TextDelta | CallStart | ArgumentsDelta | CallEnd | CallWithdrawn


@dataclass
class FoundCall:
    """A call as far as it was read; ``arguments`` is complete JSON once ``ended``."""

    index: int
    name: str
    arguments: str = ""
    ended: bool = False


@dataclass
class Findings:
    """Events put together again: the text outside calls, and the calls by their index."""

    text: str = ""
    open_calls: dict[int, FoundCall] = field(default_factory=dict)

    def add(self, events: Iterable[Event]) -> None:
        """Take in more events."""
        for event in events:
            match event:
                case TextDelta(text):
                    self.text += text
                case CallStart(index, name):
                    self.open_calls[index] = FoundCall(index, name)
                case ArgumentsDelta(index, text):
                    self.open_calls[index].arguments += text
                case CallEnd(index):
                    self.open_calls[index].ended = True
                case CallWithdrawn(index):
                    del self.open_calls[index]

    @property
    def calls(self) -> list[FoundCall]:
        """The complete calls."""
        return [call for call in self.open_calls.values() if call.ended]
