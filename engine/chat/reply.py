"""Reading a reply while it is generated: reasoning, content and tool calls."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from ...grammar.json_text import rewrite
from ...grammar.reasoning import ReasoningSplitter, Split
from ...grammar.tool_calls import (
    ArgumentsDelta,
    CallStart,
    CallWithdrawn,
    Event,
    Findings,
    TextDelta,
    ToolCallParser,
)
from .outputs import ChatDelta, ChatOutput, ToolCall, ToolCallDelta

if TYPE_CHECKING:
    from ...grammar.reasoning import ReasoningFormat
    from ...grammar.tool_calls import ToolCallFormat
    from ..replies.outputs import RequestOutput


class ReplyReader:
    """Reads the cumulative outputs of one request.

    Args:
        tool_format: how tool calls are written, None to look for none.
        names: the tools.
        reasoning: how reasoning is marked, None to look for none.
        in_reasoning: the reply begins inside the reasoning.
    """

    def __init__(
        self,
        tool_format: ToolCallFormat | None,
        names: Collection[str],
        reasoning: ReasoningFormat | None,
        *,
        in_reasoning: bool,
    ) -> None:
        self._calls = None if tool_format is None else ToolCallParser(tool_format, names)
        self._splitter = None if reasoning is None else ReasoningSplitter(reasoning, inside=in_reasoning)
        self._read = 0  # characters of the text
        self._reasoning = ""
        self._findings = Findings()

    def read(self, output: RequestOutput) -> ChatDelta | None:
        """What ``output`` adds to those before it, None if it shows nothing new; a final one always does."""
        assert output.text is not None
        split = self._split(output.text[self._read :])
        self._read = len(output.text)
        events = self._find(split.content)
        is_final = output.finish_reason is not None
        if is_final:
            rest = Split() if self._splitter is None else self._splitter.finish()
            split = Split(split.reasoning + rest.reasoning, split.content + rest.content)
            events += self._find(rest.content)
            events += [] if self._calls is None else self._calls.finish()
        self._reasoning += split.reasoning
        self._findings.add(events)
        if not (is_final or events or split.reasoning):
            return None
        reply = self._reply(output) if is_final else None
        return ChatDelta(
            content="".join(event.text for event in events if isinstance(event, TextDelta)),
            tool_calls=tuple(_merged(events, output.rid)),
            reasoning_content=split.reasoning,
            index=output.index,
            finish_reason=None if reply is None else reply.finish_reason,
            output=reply,
        )

    def read_whole(self, output: RequestOutput) -> ChatOutput:
        """The reply of a final output; nothing may have been read before."""
        delta = self.read(output)
        assert delta is not None
        assert delta.output is not None
        return delta.output

    def _split(self, piece: str) -> Split:
        return Split(content=piece) if self._splitter is None else self._splitter.feed(piece)

    def _find(self, content: str) -> list[Event]:
        if not content:
            return []
        return [TextDelta(content)] if self._calls is None else self._calls.feed(content)

    def _reply(self, output: RequestOutput) -> ChatOutput:
        calls = tuple(
            ToolCall(_call_id(output.rid, call.index), call.name, rewrite(call.arguments))
            for call in self._findings.calls
        )
        reason = str((output.finish_reason or {})["type"])
        return ChatOutput(
            content=self._findings.text or (None if calls else ""),
            tool_calls=calls,
            reasoning_content=self._reasoning or None,
            finish_reason="tool_calls" if calls and reason == "stop" else reason,
            output=output,
        )


def _merged(events: Iterable[Event], rid: str) -> Iterable[ToolCallDelta]:
    """One piece per call that ``events`` speak of."""
    deltas: dict[int, ToolCallDelta] = {}
    for event in events:
        match event:
            case CallStart(index, name):
                deltas[index] = ToolCallDelta(index, _call_id(rid, index), name)
            case ArgumentsDelta(index, text):
                so_far = deltas.get(index, ToolCallDelta(index))
                deltas[index] = ToolCallDelta(index, so_far.id, so_far.name, so_far.arguments + text)
            case CallWithdrawn(index):
                deltas[index] = ToolCallDelta(index, withdrawn=True)
    return deltas.values()


def _call_id(rid: str, index: int) -> str:
    """An id that belongs to the request: some chat templates want exactly nine letters and digits."""
    return hashlib.blake2b(f"{rid}:{index}".encode(), digest_size=5).hexdigest()[:9]
