"""``tool_choice`` as the OpenAI API writes it: which tools are shown, and whether they must be called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ...errors import InvalidRequestError, short
from ...grammar.tool_calls import Tool


class ToolChoice(NamedTuple):
    """The ``tools`` that are shown; ``must_call``: the reply is calls of them."""

    tools: tuple[Tool, ...] = ()
    must_call: bool = False


def read_tool_choice(value: object, tools: tuple[Tool, ...]) -> ToolChoice:
    """Read a choice among ``tools``; None is "auto". Raises InvalidRequestError for what is none."""
    word = value if isinstance(value, str) else None
    if word == "none" or (value is None and not tools):
        return ToolChoice()
    if not tools:
        raise InvalidRequestError(f"tool_choice={short(value)} needs tools, and there are none.")
    if value is None or word in ("auto", "required"):
        return ToolChoice(tools, must_call=word == "required")
    if isinstance(value, Mapping) and value.get("type") == "allowed_tools":
        return _allowed(value, tools)
    return ToolChoice((_named("tool_choice", value, tools),), must_call=True)


def _allowed(value: Mapping, tools: tuple[Tool, ...]) -> ToolChoice:
    allowed = value.get("allowed_tools")
    mode, names = (
        (allowed.get("mode"), allowed.get("tools")) if isinstance(allowed, Mapping) else (None, None)
    )
    if mode not in ("auto", "required") or not isinstance(names, (list, tuple)) or not names:
        raise InvalidRequestError(
            'tool_choice of type "allowed_tools" must be {"type": "allowed_tools", "allowed_tools": {"mode":'
            f' "auto" | "required", "tools": [...]}}}}, got {short(value)}.'
        )
    shown = {
        _named(f"tool_choice.allowed_tools.tools[{i}]", one, tools).function.name
        for i, one in enumerate(names)
    }
    return ToolChoice(
        tuple(tool for tool in tools if tool.function.name in shown), must_call=mode == "required"
    )


def _named(where: str, value: object, tools: tuple[Tool, ...]) -> Tool:
    """The tool that is meant by its name or by an object with it."""
    names = ", ".join(tool.function.name for tool in tools)
    name = value
    if isinstance(value, Mapping) and value.get("type", "function") == "function":
        function = value.get("function")
        name = function.get("name") if isinstance(function, Mapping) else None
    for tool in tools:
        if isinstance(name, str) and tool.function.name == name:
            return tool
    if isinstance(name, str) and name is not value:
        raise InvalidRequestError(f"{where} names {short(name)}, which is not among the tools: {names}.")
    raise InvalidRequestError(
        f"{where} must be 'auto', 'none', 'required', the name of a tool ({names}) or"
        f' {{"type": "function", "function": {{"name": ...}}}}, got {short(value)}.'
    )
