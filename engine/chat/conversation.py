"""Chat messages as callers send them, checked."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from ...errors import InvalidRequestError

ROLES = ("system", "developer", "user", "assistant", "tool")

# what a message may hold besides role and content
_FIELDS = {"assistant": ("tool_calls", "reasoning_content"), "tool": ("tool_call_id", "name")}


class Message(NamedTuple):
    """One message. ``content`` is a text, or the texts of several parts; ``fields`` what else there is.

    These are, as chat templates read them: ``tool_calls`` (arguments as objects) and ``reasoning_content`` of
    an assistant, ``tool_call_id`` and ``name`` of a tool's result.
    """

    role: str
    content: str | tuple[str, ...]
    fields: tuple[tuple[str, Any], ...] = ()

    @property
    def has_calls(self) -> bool:
        """Whether the assistant called tools in it."""
        return any(name == "tool_calls" for name, _ in self.fields)


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
        messages = tuple(_message(f"messages[{i}]", message) for i, message in enumerate(value))
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


def _message(where: str, value: object) -> Message:
    if not isinstance(value, dict):
        raise InvalidRequestError(f"{where} must be an object with role and content, got {value!r}.")
    role = value.get("role")
    if role not in ROLES:
        raise InvalidRequestError(f"{where}.role must be one of {', '.join(ROLES)}, got {role!r}.")
    fields = {}
    for name, field in value.items():
        if name in ("role", "content") or field is None:
            continue
        if name not in _FIELDS.get(role, ()):
            raise InvalidRequestError(f"{where}.{name} is not supported.")
        if name == "tool_calls":
            fields[name] = _tool_calls(f"{where}.tool_calls", field)
        elif isinstance(field, str):
            fields[name] = field
        else:
            raise InvalidRequestError(f"{where}.{name} must be a string, got {field!r}.")
    content = value.get("content")
    if content is None and "tool_calls" in fields:
        content = ""
    return Message(role, _content(f"{where}.content", content), tuple(fields.items()))


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


def _tool_calls(where: str, value: object) -> list[dict[str, Any]]:
    if not isinstance(value, (list, tuple)) or not value:
        raise InvalidRequestError(f"{where} must be a non-empty list of calls, got {value!r}.")
    return [_tool_call(f"{where}[{i}]", call) for i, call in enumerate(value)]


def _tool_call(where: str, call: object) -> dict[str, Any]:
    """One call, with its arguments as an object: templates write them as JSON themselves."""
    function = call.get("function") if isinstance(call, dict) else None
    if (
        not isinstance(function, dict)
        or not isinstance(function.get("name"), str)
        or call.get("type", "function") != "function"
        or not isinstance(call.get("id", ""), str)
    ):
        raise InvalidRequestError(
            f'{where} must be {{"id": ..., "type": "function", "function": {{"name": ..., "arguments":'
            f" ...}}}}, got {call!r}."
        )
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except ValueError as error:
            raise InvalidRequestError(f"{where}.function.arguments is not JSON: {error}.") from error
    if not isinstance(arguments, dict):
        raise InvalidRequestError(
            f"{where}.function.arguments must be an object, or the JSON text of one, got {arguments!r}."
        )
    identity = {"id": call["id"]} if "id" in call else {}
    return {**identity, "type": "function", "function": {"name": function["name"], "arguments": arguments}}
