"""Conversations as callers send them, checked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ...errors import InvalidRequestError
from .messages import ROLES, Message, read_message

__all__ = ["ROLES", "Conversation", "Message", "join"]


@dataclass(frozen=True)
class Conversation:
    """Checked chat messages.

    If the last one is the assistant's, it is the beginning of the reply: the model continues it.
    """

    messages: tuple[Message, ...]

    @classmethod
    def from_json(cls, value: object) -> Conversation:
        """Check a ``messages`` list; raises InvalidRequestError naming the message that is wrong."""
        if not isinstance(value, (list, tuple)) or not value:
            raise InvalidRequestError("messages must be a non-empty list of {role, content} objects.")
        messages = tuple(read_message(f"messages[{i}]", message) for i, message in enumerate(value))
        if messages[-1].has_calls:
            raise InvalidRequestError(
                "The last message calls tools: add their results, as messages of the role 'tool'."
            )
        return cls(messages)

    @classmethod
    def from_pairs(cls, pairs: Iterable[tuple[str, str]]) -> Conversation:
        """A conversation of (role, text) pairs."""
        return cls(tuple(Message(role, text) for role, text in pairs))

    @property
    def lines(self) -> list[tuple[str, str]]:
        """The messages as (role, text) pairs; several parts of one message are joined by line ends."""
        return [(message.role, join(message.content, "\n")) for message in self.messages]


def join(content: str | tuple[str, ...], separator: str) -> str:
    """A message's content as one text."""
    return content if isinstance(content, str) else separator.join(content)
