"""How models write tool calls: one small class per family, and the register of them.

A new format is one class: where a call begins, how to read what follows, how to write it::

    @register_format
    class Tagged(ToolCallFormat):
        name = "tagged"
        start = "<function="

        def read(self, parser):
            name = yield from parser.source.until(">")
            yield from parser.arguments(name)
            yield from parser.source.optional("</function>")

        def write(self, functions):
            calls = [tag(f"<function={f.name}>", f.schema, "</function>") for f in functions]
            return one_or_more(calls, separator="")
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar

from ...errors import ConfigError

if TYPE_CHECKING:
    from ..pieces import Reading
    from .parser import ToolCallParser
    from .tools import Function


class ToolCallFormat(ABC):
    """One way of writing tool calls.

    Attributes:
        name: what it is called in the option ``tool_call_parser``.
        start: the text calls begin with.
        bare: a reply that begins with ``{`` may be a call without ``start``.
    """

    name: ClassVar[str]
    start: ClassVar[str]
    bare: ClassVar[bool] = False

    def stands_in(self, template: str) -> bool:
        """Whether a chat template writes calls so; unless overridden, if it contains ``start``."""
        return self.start in template

    @abstractmethod
    def read(self, parser: ToolCallParser) -> Reading[None]:
        """Read what follows ``start``, one call or several, by ``parser.source`` and ``parser.call()``.

        It may let Malformed pass: calls that are complete by then stay, the rest becomes text.
        """

    @abstractmethod
    def write(self, functions: Sequence[Function]) -> dict[str, Any]:
        """A structural-tag format of one or more calls of ``functions``, and nothing else."""


def tag(begin: str, schema: dict[str, Any], end: str) -> dict[str, Any]:
    """JSON of ``schema`` between two texts, as a structural-tag format."""
    content = {"type": "json_schema", "json_schema": schema}
    return {"type": "tag", "begin": begin, "content": content, "end": end}


def one_or_more(tags: list[dict[str, Any]], separator: str) -> dict[str, Any]:
    """One or more of ``tags`` with ``separator`` between them, as a structural-tag format."""
    return {"type": "tags_with_separator", "tags": tags, "separator": separator, "at_least_one": True}


_FORMATS: Final[dict[str, ToolCallFormat]] = {}

F = TypeVar("F", bound=type[ToolCallFormat])


def register_format(cls: F) -> F:
    """Make a format known by its ``name``; one that is known already is replaced. A class decorator."""
    _FORMATS[cls.name] = cls()
    return cls


def format_names() -> tuple[str, ...]:
    """The names of all formats."""
    return tuple(_FORMATS)


def get_format(name: str) -> ToolCallFormat:
    """The format called ``name``; raises ConfigError if there is none."""
    if name not in _FORMATS:
        raise ConfigError(
            f"Unsupported tool_call_parser: {name!r}. Use one of {', '.join(_FORMATS)}, or register a format."
        )
    return _FORMATS[name]


def detect_format(chat_template: object) -> ToolCallFormat | None:
    """The format a tokenizer's chat template (a text, or several by name) writes calls in, None if unknown.

    Of several that stand in it, the one registered last.
    """
    texts = chat_template.values() if isinstance(chat_template, dict) else [chat_template]
    text = "\n".join(text for text in texts if isinstance(text, str))
    found = [tool_format for tool_format in _FORMATS.values() if tool_format.stands_in(text)]
    return found[-1] if found else None


@register_format
class Llama3(ToolCallFormat):
    """Llama 3.1 to 3.3: ``<|python_tag|>{"name": ..., "parameters": {...}}``, more of them after ``;``.

    For tools of the caller's own these models leave the tag out.
    """

    name = "llama3"
    start = "<|python_tag|>"
    bare = True

    def stands_in(self, template: str) -> bool:
        """Templates of the small models never write the tag."""
        return self.start in template or '{"name": function name, "parameters": ' in template

    def read(self, parser: ToolCallParser) -> Reading[None]:
        """Objects, ``;`` between them, each with or without the tag."""
        source = parser.source
        yield from source.space()
        yield from parser.call()
        while (yield from source.optional(";")):
            yield from source.optional(self.start)
            yield from source.space()
            yield from parser.call()

    def write(self, functions: Sequence[Function]) -> dict[str, Any]:
        """Without the tag, as the models' own template asks them to."""
        calls = [tag(f'{{"name": "{f.name}", "parameters": ', f.schema, "}") for f in functions]
        return one_or_more(calls, separator="; ")


@register_format
class Mistral(ToolCallFormat):
    """Mistral: ``[TOOL_CALLS] [{"name": ..., "arguments": {...}}, ...]``."""

    name = "mistral"
    start = "[TOOL_CALLS]"

    def read(self, parser: ToolCallParser) -> Reading[None]:
        """A list of objects."""
        source = parser.source
        yield from source.space()
        yield from source.expect("[")
        yield from source.space()
        yield from parser.call()
        while (yield from source.optional(",")):
            yield from source.space()
            yield from parser.call()
        yield from source.optional("]")

    def write(self, functions: Sequence[Function]) -> dict[str, Any]:
        """One list."""
        calls = [tag(f'{{"name": "{f.name}", "arguments": ', f.schema, "}") for f in functions]
        beginning, end = ({"type": "const_string", "value": text} for text in (f"{self.start} [", "]"))
        return {"type": "sequence", "elements": [beginning, one_or_more(calls, separator=", "), end]}


@register_format
class Qwen25(ToolCallFormat):
    """Qwen 2.5 and 3, Hermes: ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``, repeated."""

    name = "qwen25"
    start = "<tool_call>"

    def stands_in(self, template: str) -> bool:
        """Other models put something else than JSON between the same tags."""
        return self.start in template and '"arguments"' in template

    def read(self, parser: ToolCallParser) -> Reading[None]:
        """One object, and the end tag if it is there."""
        yield from parser.source.space()
        yield from parser.call()
        yield from parser.source.optional("</tool_call>")

    def write(self, functions: Sequence[Function]) -> dict[str, Any]:
        """One pair of tags per call."""
        beginning = '<tool_call>\n{{"name": "{}", "arguments": '
        calls = [tag(beginning.format(f.name), f.schema, "}\n</tool_call>") for f in functions]
        return one_or_more(calls, separator="\n")
