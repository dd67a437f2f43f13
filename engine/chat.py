"""Chat messages to the prompt of a request: by the tokenizer's template, or the one that replaces it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import InvalidRequestError

if TYPE_CHECKING:
    from ..grammar.chat_templates import ChatTemplate, ConversationTemplate
    from ..sampling.params import SamplingParams

ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True)
class Conversation:
    """Checked chat messages as (role, content) pairs; a content is a text, or the texts of several parts.

    If the last one is the assistant's, it is the beginning of the reply: the model continues it.
    """

    messages: tuple[tuple[str, str | tuple[str, ...]], ...]

    @classmethod
    def from_json(cls, value: object) -> Conversation:
        """Check a ``messages`` list; raises InvalidRequestError naming the message that is wrong."""
        if not isinstance(value, list) or not value:
            raise InvalidRequestError("messages must be a non-empty list of {role, content} objects.")
        return cls(tuple(_message(f"messages[{i}]", message) for i, message in enumerate(value)))

    @property
    def lines(self) -> list[tuple[str, str]]:
        """The messages as (role, text) pairs; several parts of one message are joined by line ends."""
        return [(role, _join(content, "\n")) for role, content in self.messages]


class ChatPrompt(NamedTuple):
    """A rendered conversation: its token ids, and the strings at which the template wants a reply to stop."""

    token_ids: list[int]
    stop: tuple[str, ...] = ()

    def add_stop(self, params: SamplingParams) -> SamplingParams:
        """``params`` with the template's stop strings in front of its own."""
        if not self.stop:
            return params
        return dataclasses.replace(params, stop=tuple(dict.fromkeys((*self.stop, *params.stop))))


class ChatRenderer:
    """Turns conversations into prompts. Stateless: any thread may call.

    Args:
        tokenizer: a transformers tokenizer whose ``chat_template`` is the one in force, or None.
        template: what that template is if it replaces the tokenizer's own.
    """

    def __init__(self, tokenizer: Any, template: ChatTemplate | None = None) -> None:
        self._tokenizer = tokenizer
        self._template: ConversationTemplate | None = template.conversation if template else None

    def render(self, conversation: Conversation) -> str:
        """Return the prompt text for ``conversation``, up to where the assistant's reply begins or goes on.

        Raises InvalidRequestError if there is no tokenizer or template, or if the template refuses the
        messages: some demand that roles alternate, and those given by name or as JSON take system, user and
        assistant only, with one text each (users may send several, which are put together).
        """
        self._check_tokenizer()
        messages = [{"role": role, "content": text} for role, text in self._texts(conversation)]
        reply_start = messages.pop()["content"] if messages[-1]["role"] == "assistant" else ""
        if not messages:
            raise InvalidRequestError("messages hold only the beginning of a reply: add a user message.")
        try:
            text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # templates are programs of the model's author: they may raise anything
            message = str(error).removesuffix(".")
            raise InvalidRequestError(f"The chat template refuses these messages: {message}.") from error
        if reply_start and self._template is not None:
            text += self._template.reply_gap
        return text + reply_start

    def encode(self, conversation: Conversation) -> ChatPrompt:
        """Return token ids and stop strings for ``conversation``; raises as :meth:`render`.

        A Jinja template writes every special token itself; the text of a conversation template begins without
        the BOS token, which the tokenizer adds.
        """
        text = self.render(conversation)
        if self._template is None:
            return ChatPrompt(list(self._tokenizer.encode(text, add_special_tokens=False)))
        return ChatPrompt(list(self._tokenizer.encode(text)), self._template.stop)

    def _check_tokenizer(self) -> None:
        if self._tokenizer is None:
            raise InvalidRequestError("messages need a tokenizer, and the engine was built without one.")
        if not getattr(self._tokenizer, "chat_template", None):
            raise InvalidRequestError(
                "The tokenizer has no chat template. Send a prompt, or set the engine option chat_template."
            )

    def _texts(self, conversation: Conversation) -> list[tuple[str, str]]:
        if self._template is None:
            return conversation.lines
        for i, (role, content) in enumerate(conversation.messages):
            if role in ("system", "assistant") and not isinstance(content, str):
                raise InvalidRequestError(
                    f"messages[{i}]: with this chat template the {role} message must be a single text, got"
                    f" {len(content)} parts."
                )
        return [(role, _join(content, "")) for role, content in conversation.messages]


def _message(name: str, value: object) -> tuple[str, str | tuple[str, ...]]:
    if not isinstance(value, dict):
        raise InvalidRequestError(f"{name} must be an object with role and content, got {value!r}.")
    role = value.get("role")
    if role not in ROLES:
        raise InvalidRequestError(f"{name}.role must be one of {', '.join(ROLES)}, got {role!r}.")
    extra = [key for key in value if key not in ("role", "content") and value[key] is not None]
    if extra:
        raise InvalidRequestError(f"{name}.{extra[0]} is not supported.")
    return role, _content(f"{name}.content", value.get("content"))


def _content(name: str, value: object) -> str | tuple[str, ...]:
    """What a message says: a string, or the texts of a list of text parts."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise InvalidRequestError(
            f"{name} must be a string or a non-empty list of text parts, got {value!r}."
        )
    for i, part in enumerate(value):
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(kind, str) and kind != "text":
            raise InvalidRequestError(f"{name}[{i}]: parts of type {kind!r} are not supported, only text.")
        if kind is None or not isinstance(part.get("text"), str):
            raise InvalidRequestError(f'{name}[{i}] must be {{"type": "text", "text": "..."}}, got {part!r}.')
    texts = tuple(part["text"] for part in value)
    return texts[0] if len(texts) == 1 else texts


def _join(content: str | tuple[str, ...], separator: str) -> str:
    return content if isinstance(content, str) else separator.join(content)
