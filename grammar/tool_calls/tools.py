"""The tools a model may call, as callers describe them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from ...errors import InvalidRequestError, short

_NAME: Final = re.compile(r"[\w.-]{1,64}")
_FUNCTION_FIELDS: Final = ("name", "description", "parameters", "strict")


@dataclass(frozen=True, kw_only=True)
class Function:
    """A function: its name, what it does, and a JSON schema (an object's) of its arguments.

    Without ``parameters`` it takes none. ``strict``: its arguments must keep to them, which only calls that
    are forced do; others are refused. Raises InvalidRequestError for what is no name or schema.
    """

    name: str
    description: str | None = None
    parameters: Mapping[str, Any] | None = None
    strict: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise InvalidRequestError(
                "The name of a tool must be 1 to 64 letters, digits, underscores, dots and dashes, got"
                f" {short(self.name)}."
            )
        if self.description is not None and not isinstance(self.description, str):
            raise InvalidRequestError(f"Tool {self.name!r}: description must be a text.")
        if not isinstance(self.strict, bool):
            raise InvalidRequestError(f"Tool {self.name!r}: strict must be true or false.")
        problem = None if self.parameters is None else _find_problem(self.parameters)
        if problem:
            raise InvalidRequestError(f"Tool {self.name!r}: parameters {problem}")

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON schema of the arguments."""
        if self.parameters is None:
            return {"type": "object", "properties": {}, "additionalProperties": False}
        return {"type": "object", **self.parameters}


@dataclass(frozen=True, kw_only=True)
class Tool:
    """A tool, which is always a function."""

    function: Function
    type: str = "function"

    def __post_init__(self) -> None:
        if self.type != "function":
            raise InvalidRequestError(f"The type of a tool must be 'function', got {short(self.type)}.")
        if not isinstance(self.function, Function):
            raise InvalidRequestError(
                f"Tool.function must be a Function, got {type(self.function).__name__}."
            )

    def as_dict(self) -> dict[str, Any]:
        """The tool as chat templates and the OpenAI API write it."""
        function = {
            "name": self.function.name,
            "description": self.function.description,
            "parameters": self.function.parameters,
        }
        return {"type": self.type, "function": {k: v for k, v in function.items() if v is not None}}


def is_name_character(character: str) -> bool:
    """Whether a tool's name may contain it."""
    return _NAME.fullmatch(character) is not None


def read_tools(tools: object) -> tuple[Tool, ...]:
    """Check ``tools``: a list of :class:`Tool` or of ``{"type": "function", "function": {...}}``.

    Raises InvalidRequestError naming the one that is wrong.
    """
    if not isinstance(tools, (list, tuple)):
        raise InvalidRequestError(f"tools must be a list of tools, got {type(tools).__name__}.")
    read = tuple(_read_tool(f"tools[{i}]", tool) for i, tool in enumerate(tools))
    seen = set()
    for tool in read:
        name = tool.function.name
        if name in seen:
            raise InvalidRequestError(f"tools has {name!r} twice: names must differ.")
        seen.add(name)
    return read


def _read_tool(where: str, tool: object) -> Tool:
    if isinstance(tool, Tool):
        return tool
    given: Mapping[str, Any] = tool if isinstance(tool, Mapping) else {}
    function = given.get("function")
    kind = given.get("type")
    is_function = kind is None or (isinstance(kind, str) and kind == "function")
    if not isinstance(function, Mapping) or not is_function:
        raise InvalidRequestError(
            f'{where} must be {{"type": "function", "function": {{"name": ..., "description": ...,'
            f' "parameters": ...}}}}, got {short(tool)}.'
        )
    values = {name: value for name, value in function.items() if value is not None}
    for name in values:
        if name not in _FUNCTION_FIELDS:
            raise InvalidRequestError(
                f"{where}.function.{name} is unknown; there are {', '.join(_FUNCTION_FIELDS)}."
            )
    if "name" not in values:
        raise InvalidRequestError(f"{where}.function.name is missing.")
    try:
        return Tool(function=Function(**values))
    except InvalidRequestError as error:
        raise InvalidRequestError(f"{where}: {error}") from error


def _find_problem(schema: object) -> str | None:
    """What is wrong with a schema of arguments as a whole; the rest is the grammar compiler's to say."""
    if not isinstance(schema, Mapping):
        return f"must be a JSON schema (an object), got {type(schema).__name__}."
    if schema.get("type", "object") != "object":
        return f"must describe an object, got type {short(schema['type'])}."
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if not isinstance(properties, Mapping):
        return f"has properties that are no object: {short(properties)}."
    if not isinstance(required, (list, tuple)) or not all(isinstance(name, str) for name in required):
        return f"has a required that is no list of names: {short(required)}."
    try:
        json.dumps(schema)
    except (TypeError, ValueError, RecursionError) as error:
        return f"cannot be written as JSON: {error}."
    return None
