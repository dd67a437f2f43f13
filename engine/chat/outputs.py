"""What a chat returns: whole replies, and the pieces of a streamed one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..replies.outputs import RequestOutput


@dataclass(frozen=True)
class ToolCall:
    """A call of the tool ``name``. ``arguments``: JSON text of an object. ``id``: 9 letters and digits."""

    id: str
    name: str
    arguments: str

    def as_dict(self) -> dict[str, Any]:
        """The call as the OpenAI API writes it."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}


@dataclass(frozen=True)
class ChatOutput:
    """One reply.

    Attributes:
        content: the answer; None if there are tool calls and nothing else.
        tool_calls: the calls in it, complete and of known tools; any other is part of ``content``.
        reasoning_content: what the model thought first, None if it did not or without a ``reasoning_parser``.
        finish_reason: ``"stop"``, ``"length"``, ``"abort"``, or ``"tool_calls"`` for a stop after calls.
        output: the request behind it: its text as generated, token ids, log-probabilities, ``meta_info``.
    """

    content: str | None
    tool_calls: tuple[ToolCall, ...]
    reasoning_content: str | None
    finish_reason: str
    output: RequestOutput

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return self.output.prompt_tokens

    @property
    def completion_tokens(self) -> int:
        """Tokens generated."""
        return self.output.completion_tokens

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompt that came from the prefix cache."""
        return self.output.cached_tokens

    @property
    def index(self) -> int | None:
        """Position in a batch (``conversation * n + sample``), None for a single reply."""
        return self.output.index

    @property
    def message(self) -> dict[str, Any]:
        """The reply as a message, to be appended to the conversation."""
        message: dict[str, Any] = {"role": "assistant", "content": self.content}
        if self.reasoning_content is not None:
            message["reasoning_content"] = self.reasoning_content
        if self.tool_calls:
            message["tool_calls"] = [call.as_dict() for call in self.tool_calls]
        return message


@dataclass(frozen=True)
class ToolCallDelta:
    """A piece of a tool call.

    ``index`` counts the calls of a reply. The first piece has ``id`` and ``name``; the ``arguments`` of all
    of them make up the call's, as the model wrote them. ``withdrawn``: its text turned out to be no call;
    throw its pieces away, the text comes as content. So act on a call when the reply has ended, by its
    ``output.tool_calls``, which are complete; the pieces are for showing it while it is written. Calls that
    ``tool_choice`` forces keep to a grammar and are withdrawn only if the reply is cut by its length.
    """

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""
    withdrawn: bool = False


@dataclass(frozen=True)
class ChatDelta:
    """What is new in a streamed reply.

    Attributes:
        content, reasoning_content: more of the texts of those names of :class:`ChatOutput`, empty for none.
        tool_calls: pieces of calls, at most one of each call.
        index: position in a batch (``conversation * n + sample``), None for a single reply.
        finish_reason: as that of :class:`ChatOutput`, in the last delta; None before.
        output: the whole reply, in the last delta; None before.
    """

    content: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    reasoning_content: str = ""
    index: int | None = None
    finish_reason: str | None = None
    output: ChatOutput | None = None
