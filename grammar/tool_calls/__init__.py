"""Tool calls in what a model writes: the formats of model families, and the parser that finds them."""

from . import families as _families  # noqa: F401 - registers them
from .events import ArgumentsDelta, CallEnd, CallStart, CallWithdrawn, Event, Findings, TextDelta
from .formats import ToolCallFormat, detect_format, format_names, get_format, register_format
from .function_call_parser import FunctionCallParser, ToolCallItem
from .parser import ToolCallParser, parse
from .tools import Function, Tool, read_tools

__all__ = [
    "ArgumentsDelta",
    "CallEnd",
    "CallStart",
    "CallWithdrawn",
    "Event",
    "Findings",
    "Function",
    "FunctionCallParser",
    "TextDelta",
    "Tool",
    "ToolCallFormat",
    "ToolCallItem",
    "ToolCallParser",
    "detect_format",
    "format_names",
    "get_format",
    "parse",
    "read_tools",
    "register_format",
]
