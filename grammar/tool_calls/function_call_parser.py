"""``FunctionCallParser``: the documented interface to the parsers."""

from __future__ import annotations

from dataclasses import dataclass

from ..json_text import rewrite
from .events import CallEnd, CallStart, Event, TextDelta
from .formats import get_format
from .parser import ToolCallParser, parse
from .tools import read_tools


@dataclass(frozen=True)
class ToolCallItem:
    """A tool call, or a piece of one.

    Attributes:
        tool_index: position of the tool in the list of tools.
        name: the tool; in a stream empty but for the first piece of a call.
        parameters: the arguments, a JSON object; in a stream empty in the first piece of a call.
        call_index: position of the call in the text.
    """

    tool_index: int
    name: str
    parameters: str
    call_index: int = 0


class FunctionCallParser:
    """Finds calls of ``tools`` in what a model wrote, whole or piece by piece.

    Args:
        tools: :class:`Tool` objects or dictionaries.
        tool_call_parser: name of the format: ``llama3``, ``mistral``, ``qwen25`` or a registered one.

    Raises InvalidRequestError for wrong tools, ConfigError (a ValueError) for a format nobody knows.
    """

    def __init__(self, tools: object, tool_call_parser: str) -> None:
        self._format = get_format(tool_call_parser)
        names = [tool.function.name for tool in read_tools(tools)]
        self._positions = {name: i for i, name in enumerate(names)}
        self._parser = ToolCallParser(self._format, names)
        self._name = ""  # of the call being read
        self._num_calls = 0  # handed out by the stream

    def parse_non_stream(self, full_text: str) -> tuple[str, list[ToolCallItem]]:
        """The text outside calls, and the calls, of a whole text. What is no call is text."""
        findings = parse(self._format, self._positions, full_text)
        return findings.text, [
            ToolCallItem(self._positions[call.name], call.name, rewrite(call.arguments), position)
            for position, call in enumerate(findings.calls)
        ]

    def parse_stream_chunk(self, chunk_text: str) -> tuple[str, list[ToolCallItem]]:
        """The text outside calls, and the pieces of calls, that the next chunk of a text shows.

        A call is handed out when its last character has been read, for before that nothing says that it will
        be one: then come an item with its name and no parameters, and one with the arguments as they were
        written. So a stream hands out what :meth:`parse_non_stream` finds, and nothing else.
        :meth:`rootlet.Engine.chat` streams arguments while they are written.
        """
        return self._items(self._parser.feed(chunk_text))

    def finish_stream(self) -> tuple[str, list[ToolCallItem]]:
        """The same for what was held back, once the text has ended."""
        return self._items(self._parser.finish())

    def _items(self, events: list[Event]) -> tuple[str, list[ToolCallItem]]:
        text, items = "", []
        for event in events:
            match event:
                case TextDelta(piece):
                    text += piece
                case CallStart(_, name):
                    self._name = name
                case CallEnd(_, arguments):
                    tool, index = self._positions[self._name], self._num_calls
                    items += [
                        ToolCallItem(tool, self._name, "", index),
                        ToolCallItem(tool, "", arguments, index),
                    ]
                    self._num_calls += 1
        return text, items
