"""Conversations to prompts: by the tokenizer's template, or the one that replaces it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from ...errors import InvalidRequestError
from ...grammar.chat_templates.sandbox import render_chat
from ...grammar.reasoning import get_reasoning_format
from ...grammar.tool_calls import detect_format
from ..requests.encoding import TextEncoder
from .conversation import ROLES, Conversation, join

if TYPE_CHECKING:
    from ...grammar.chat_templates import ChatTemplate, ConversationTemplate
    from ...grammar.reasoning import ReasoningFormat
    from ...grammar.tool_calls import Tool, ToolCallFormat
    from ...sampling.params import SamplingParams

__all__ = ["ROLES", "ChatPrompt", "ChatRenderer", "Conversation"]


class ChatPrompt(NamedTuple):
    """A rendered conversation: its token ids, and the strings at which the template wants a reply to stop.

    ``in_reasoning``: the reply goes on with reasoning (only with a ``reasoning_parser``).
    """

    token_ids: list[int]
    stop: tuple[str, ...] = ()
    in_reasoning: bool = False

    def add_stop(self, params: SamplingParams) -> SamplingParams:
        """``params`` with the template's stop strings in front of its own."""
        if not self.stop:
            return params
        own = cast("tuple[str, ...]", params.stop)  # what is kept of all that may be given
        return dataclasses.replace(params, stop=tuple(dict.fromkeys((*self.stop, *own))))


class ChatRenderer:
    """Turns conversations into prompts, and knows how to read the replies. Stateless: any thread may call.

    Args:
        tokenizer: a transformers tokenizer whose ``chat_template`` is the one in force, or None.
        template: what that template is if it replaces the tokenizer's own.
        tool_format: how the model writes tool calls, None if that is not known.
        reasoning: how it marks its reasoning, None to leave replies as they are.
        encoder: reads the rendered texts; by default any length of them.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: ChatTemplate | None = None,
        tool_format: ToolCallFormat | None = None,
        reasoning: ReasoningFormat | None = None,
        encoder: TextEncoder | None = None,
    ) -> None:
        self.tool_format = tool_format
        self.reasoning = reasoning
        self._tokenizer = tokenizer
        self._encoder = encoder or TextEncoder(tokenizer)
        self._template: ConversationTemplate | None = template.conversation if template else None

    @classmethod
    def of(
        cls,
        tokenizer: Any,
        template: ChatTemplate | None,
        encoder: TextEncoder,
        *,
        tool_call_parser: str,
        reasoning_parser: str | None,
    ) -> ChatRenderer:
        """The renderer of an engine, with formats by the names of its options. Raises ConfigError."""
        tool_format = detect_format(getattr(tokenizer, "chat_template", None), tool_call_parser)
        reasoning = None if reasoning_parser is None else get_reasoning_format(reasoning_parser)
        return cls(tokenizer, template, tool_format, reasoning, encoder)

    def render(self, conversation: Conversation, tools: Sequence[Tool] = ()) -> str:
        """Return the prompt text for ``conversation``, up to where the assistant's reply begins or goes on.

        ``tools`` are those the model is told of.

        Raises InvalidRequestError if there is no tokenizer or template, if the template has no place for
        tools or calls, or if it refuses the messages: some demand that roles alternate, and those given by
        name or as JSON take system, user and assistant only, with one text each (users may send several,
        which are put together).
        """
        return self._render(conversation, tools)[0]

    def encode(self, conversation: Conversation, tools: Sequence[Tool] = ()) -> ChatPrompt:
        """Return token ids and stop strings for ``conversation``; raises as :meth:`render`.

        A Jinja template writes every special token itself; the text of a conversation template begins without
        the BOS token, which the tokenizer adds.
        """
        text, reply_start = self._render(conversation, tools)
        in_reasoning = self.reasoning is not None and self.reasoning.begins_in(text, reply_start)
        if self._template is None:
            ids = self._encoder.encode(text, add_special_tokens=False)
            return ChatPrompt(ids, in_reasoning=in_reasoning)
        return ChatPrompt(self._encoder.encode(text), self._template.stop, in_reasoning)

    def _render(self, conversation: Conversation, tools: Sequence[Tool]) -> tuple[str, str]:
        """The prompt, and the beginning of the reply with which it ends."""
        self._check_template(conversation, tools)
        messages = self._messages(conversation)
        reply_start = messages.pop()["content"] if messages[-1]["role"] == "assistant" else ""
        if not messages:
            raise InvalidRequestError("messages hold only the beginning of a reply: add a user message.")
        shown = {"tools": [tool.as_dict() for tool in tools]} if tools else {}
        try:
            text = render_chat(self._tokenizer, messages, add_generation_prompt=True, **shown)
        except Exception as error:  # templates are programs of the model's author: they may raise anything
            message = str(error).removesuffix(".")
            raise InvalidRequestError(f"The chat template refuses these messages: {message}.") from error
        if reply_start and self._template is not None:
            text += self._template.reply_gap
        text += reply_start
        return text, reply_start

    def _check_template(self, conversation: Conversation, tools: Sequence[Tool]) -> None:
        if self._tokenizer is None:
            raise InvalidRequestError("messages need a tokenizer, and the engine was built without one.")
        template = getattr(self._tokenizer, "chat_template", None)
        if not template:
            raise InvalidRequestError(
                "The tokenizer has no chat template. Send a prompt, or set the engine option chat_template."
            )
        has_calls = any(message.has_calls for message in conversation.messages)
        for name, wanted in (("tools", bool(tools)), ("tool_calls", has_calls)):
            if wanted and not re.search(rf"\b{name}\b", str(template)):
                raise InvalidRequestError(
                    f"The chat template has no place for {name}, so the model would never see them. Leave"
                    " them out, or set the engine option chat_template to one that shows them."
                )

    def _messages(self, conversation: Conversation) -> list[dict[str, Any]]:
        messages = []
        for i, (role, content, fields) in enumerate(conversation.messages):
            if (
                self._template is not None
                and role in ("system", "assistant")
                and not isinstance(content, str)
            ):
                raise InvalidRequestError(
                    f"messages[{i}]: with this chat template the {role} message must be a single text, got"
                    f" {len(content)} parts."
                )
            text = join(content, "\n" if self._template is None else "")
            messages.append({"role": self._role(role), "content": text, **dict(fields)})
        return messages

    def _role(self, role: str) -> str:
        """The API's developer is what templates older than that name call the system."""
        is_unknown = self._template is None and "developer" not in str(self._tokenizer.chat_template)
        return "system" if role == "developer" and is_unknown else role
