"""How tool calls are written: what a format is, and the register of them; ``families.py`` holds those known.

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

    def of_template(self, template: str) -> ToolCallFormat:  # noqa: ARG002 - for formats with several forms
        """The format as a chat template writes it, if it has several forms: what ``write`` must keep to."""
        return self

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


def detect_format(chat_template: object, name: str = "auto") -> ToolCallFormat | None:
    """The format a tokenizer's chat template (a text, or several by name) writes calls in, None if unknown.

    Of several that stand in it, the one registered last; or the one called ``name``, in the template's form.
    """
    texts = chat_template.values() if isinstance(chat_template, dict) else [chat_template]
    text = "\n".join(text for text in texts if isinstance(text, str))
    if name != "auto":
        return get_format(name).of_template(text)
    found = [tool_format for tool_format in _FORMATS.values() if tool_format.stands_in(text)]
    return found[-1].of_template(text) if found else None
