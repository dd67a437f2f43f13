"""Chat messages to the text a model is prompted with, by the tokenizer's own template."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...errors import InvalidRequestError

ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True)
class Conversation:
    """Checked chat messages as (role, text) pairs.

    If the last one is the assistant's, it is the beginning of the reply: the model continues it.
    """

    messages: tuple[tuple[str, str], ...]

    @classmethod
    def from_json(cls, value: object) -> Conversation:
        """Check a ``messages`` list; raises InvalidRequestError naming the message that is wrong."""
        if not isinstance(value, list) or not value:
            raise InvalidRequestError("messages must be a non-empty list of {role, content} objects.")
        return cls(tuple(_message(f"messages[{i}]", message) for i, message in enumerate(value)))


def render_chat(tokenizer: Any, conversation: Conversation) -> str:
    """Return the prompt text for ``conversation``, up to where the assistant's reply begins.

    The template writes every special token itself, so the text must be tokenized with
    ``add_special_tokens=False``. Raises InvalidRequestError if there is no tokenizer or template, or
    if the template refuses the messages (some demand that roles alternate).
    """
    if tokenizer is None:
        raise InvalidRequestError("messages need a tokenizer, and the engine was built without one.")
    if not getattr(tokenizer, "chat_template", None):
        raise InvalidRequestError(
            "The tokenizer has no chat template. Send a prompt, or set the engine option chat_template."
        )
    messages = [{"role": role, "content": text} for role, text in conversation.messages]
    reply_start = messages.pop()["content"] if messages[-1]["role"] == "assistant" else ""
    if not messages:
        raise InvalidRequestError("messages hold only the beginning of a reply: add a user message.")
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # templates are programs of the model's author: they may raise anything
        raise InvalidRequestError(f"The chat template refuses these messages: {error}.") from error
    return text + reply_start


def encode_chat(tokenizer: Any, conversation: Conversation) -> list[int]:
    """Return the prompt's token ids for ``conversation``; raises as :func:`render_chat`."""
    text = render_chat(tokenizer, conversation)
    return list(tokenizer.encode(text, add_special_tokens=False))


def _message(name: str, value: object) -> tuple[str, str]:
    if not isinstance(value, dict):
        raise InvalidRequestError(f"{name} must be an object with role and content, got {value!r}.")
    role = value.get("role")
    if role not in ROLES:
        raise InvalidRequestError(f"{name}.role must be one of {', '.join(ROLES)}, got {role!r}.")
    extra = [key for key in value if key not in ("role", "content") and value[key] is not None]
    if extra:
        raise InvalidRequestError(f"{name}.{extra[0]} is not supported.")
    return role, _content(f"{name}.content", value.get("content"))


def _content(name: str, value: object) -> str:
    """Text of a message: a string, or a list of text parts, which are joined by line ends."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise InvalidRequestError(
            f"{name} must be a string or a non-empty list of text parts, got {value!r}."
        )
    for i, part in enumerate(value):
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise InvalidRequestError(
                f'{name}[{i}] must be {{"type": "text", "text": "..."}}; other kinds are not supported.'
            )
    return "\n".join(part["text"] for part in value)
