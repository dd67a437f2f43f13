"""One chat message as callers send it, checked.

The fields of the OpenAI API, and of what its clients and servers dump, are used where they say what a prompt
can say, dropped where they are empty, and refused by name where they carry what would be lost.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from ...errors import InvalidRequestError, short

ROLES: Final = ("system", "developer", "user", "assistant", "tool")

# what may stand besides role and content, as text
_TEXTS: Final = {
    "assistant": ("name", "refusal", "reasoning_content", "reasoning"),
    "tool": ("name", "tool_call_id"),
}
_OTHERS: Final = ("name",)  # of the other roles

# what cannot be put into a prompt, and what to do instead
_REFUSED: Final = {
    "tool_calls": "only the role 'assistant' calls tools",
    "tool_call_id": "only the role 'tool' answers a call",
    "refusal": "only the role 'assistant' refuses",
    "function_call": "write the call as an entry of tool_calls",
    "audio": "only text can be read",
    "annotations": "write what they say into the content",
}


class Message(NamedTuple):
    """One message. ``content`` is a text, or the texts of several parts; ``fields`` what else there is.

    These are, as chat templates read them: ``name`` of who speaks or of the tool, ``tool_calls`` (arguments
    as objects) and ``reasoning_content`` of an assistant, ``tool_call_id`` of a tool's result.
    """

    role: str
    content: str | tuple[str, ...]
    fields: tuple[tuple[str, Any], ...] = ()

    @property
    def has_calls(self) -> bool:
        """Whether the assistant called tools in it."""
        return any(name == "tool_calls" for name, _ in self.fields)


def read_message(where: str, value: object) -> Message:
    """Check a message, ``{role, content, ...}``; raises InvalidRequestError naming what is wrong in it.

    What has a ``model_dump``, such as the messages of the ``openai`` package, is dumped first. An assistant
    may have no content; a refusal is what it said.
    """
    if callable(dump := getattr(value, "model_dump", None)) and not isinstance(value, type):
        value = dump()
    if not isinstance(value, Mapping):
        raise InvalidRequestError(f"{where} must be an object with role and content, got {short(value)}.")
    role = value.get("role")
    if not isinstance(role, str) or role not in ROLES:
        is_old = isinstance(role, str) and role == "function"
        hint = " The results of calls have the role 'tool'." if is_old else ""
        raise InvalidRequestError(f"{where}.role must be one of {', '.join(ROLES)}, got {short(role)}.{hint}")
    fields = {
        name: _field(f"{where}.{name}", role, name, field)
        for name, field in value.items()
        if name not in ("role", "content") and not _is_empty(field)
    }
    fields.pop("parsed", None)  # the content once more, as an object
    thought = fields.pop("reasoning", None)  # another name for it
    if fields.setdefault("reasoning_content", thought) != thought is not None:
        raise InvalidRequestError(f"{where}: reasoning and reasoning_content differ: give one.")
    if fields["reasoning_content"] is None:
        del fields["reasoning_content"]
    refusal = fields.pop("refusal", None)
    content = value.get("content")
    if content is None and role == "assistant":
        content = ""
    texts = _content(f"{where}.content", content)
    if refusal is not None:
        texts = (*([texts] if isinstance(texts, str) else texts), refusal)
        texts = tuple(text for text in texts if text)
    return Message(role, texts[0] if len(texts) == 1 else texts, tuple(fields.items()))


def _is_empty(value: object) -> bool:
    return value is None or (isinstance(value, (str, list, tuple, dict)) and not value)


def _field(where: str, role: str, name: Any, value: object) -> Any:
    """A field that says something."""
    if role == "assistant" and name == "tool_calls":
        return _tool_calls(where, value)
    if role == "assistant" and name == "parsed":
        return value
    if name in _TEXTS.get(role, _OTHERS):
        if not isinstance(value, str):
            raise InvalidRequestError(f"{where} must be a string, got {short(value)}.")
        return value
    reason = _REFUSED.get(
        name, f"a message of this role has role, content, {', '.join(_TEXTS.get(role, _OTHERS))}"
    )
    raise InvalidRequestError(f"{where} is not supported: {reason}.")


def _content(name: str, value: object) -> str | tuple[str, ...]:
    """What a message says: a string, or the texts of a list of text parts."""
    if isinstance(value, str):
        return value
    if not isinstance(value, (list, tuple)) or not value:
        raise InvalidRequestError(
            f"{name} must be a string or a non-empty list of text parts, got {short(value)}."
        )
    texts = tuple(_part(f"{name}[{i}]", part) for i, part in enumerate(value))
    return texts[0] if len(texts) == 1 else texts


def _part(where: str, part: object) -> str:
    """The text of a part: ``{"type": "text", "text": ...}``, or the same of a refusal."""
    fields = part if isinstance(part, Mapping) else {}
    kind = fields.get("type")
    if isinstance(kind, str) and kind not in ("text", "refusal"):
        raise InvalidRequestError(f"{where}: parts of type {short(kind)} are not supported, only text.")
    text = None if kind is None else fields.get(kind)
    if not isinstance(text, str):
        raise InvalidRequestError(f'{where} must be {{"type": "text", "text": "..."}}, got {short(part)}.')
    for name, field in fields.items():
        # every prefix is cached here, so that hints of where to cache change nothing
        if name not in ("type", kind, "cache_control", "prompt_cache_breakpoint") and not _is_empty(field):
            raise InvalidRequestError(f"{where}.{name} is not supported: a part has type and {kind}.")
    return text


def _tool_calls(where: str, value: object) -> list[dict[str, Any]]:
    if not isinstance(value, (list, tuple)):
        raise InvalidRequestError(f"{where} must be a list of calls, got {short(value)}.")
    return [_tool_call(f"{where}[{i}]", call) for i, call in enumerate(value)]


def _tool_call(where: str, call: object) -> dict[str, Any]:
    """One call, with its arguments as an object: templates write them as JSON themselves."""
    given = {k: v for k, v in call.items() if v is not None} if isinstance(call, Mapping) else {}
    function = given.get("function")
    if (
        not isinstance(function, Mapping)
        or not isinstance(function.get("name"), str)
        or given.get("type", "function") != "function"
        or not isinstance(given.get("id", ""), str)
        or not isinstance(given.get("index", 0), int)
    ):
        raise InvalidRequestError(
            f'{where} must be {{"id": ..., "type": "function", "function": {{"name": ..., "arguments":'
            f" ...}}}}, got {short(call)}."
        )
    # index: of streamed pieces; parsed_arguments: the arguments once more, as an object
    for path, part, known in (
        (where, given, ("id", "type", "function", "index")),
        (f"{where}.function", function, ("name", "arguments", "parsed_arguments")),
    ):
        for name, field in part.items():
            if name not in known and not _is_empty(field):
                raise InvalidRequestError(f"{path}.{name} is not supported; there are {', '.join(known)}.")
    arguments = _arguments(f"{where}.function.arguments", function.get("arguments"))
    identity = {"id": given["id"]} if "id" in given else {}
    return {**identity, "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _arguments(where: str, value: object) -> dict[str, Any]:
    if value is None or value == "":
        return {}
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise InvalidRequestError(f"{where} is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise InvalidRequestError(f"{where} must be an object, or the JSON text of one, got {short(value)}.")
    return value
