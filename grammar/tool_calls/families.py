"""The formats of model families."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from ..pieces import Malformed
from .formats import ToolCallFormat, one_or_more, register_format, tag
from .tools import is_name_character

if TYPE_CHECKING:
    from ..pieces import Reading
    from .parser import ToolCallParser
    from .tools import Function

_ID_MARKER: Final = "[CALL_ID]"
_ARGUMENTS_MARKER: Final = "[ARGS]"
# in a template: the marker of Mistral's calls, and the name of one right behind it
_NAME_FOLLOWS: Final = re.compile(
    r"""\[TOOL_CALLS\]['"]?[\s+~{}-]*\w+(?:\.\w+|\[['"]\w+['"]\])*?(?:\.name|\[['"]name['"]\])"""
)


@register_format
class Llama3(ToolCallFormat):
    """Llama 3.1 to 3.3: ``<|python_tag|>{"name": ..., "parameters": {...}}``, more after ``;`` or a line end.

    For tools of the caller's own these models leave the tag out.
    """

    name = "llama3"
    start = "<|python_tag|>"
    bare = True

    def stands_in(self, template: str) -> bool:
        """Templates of the small models never write the tag."""
        return self.start in template or '{"name": function name, "parameters": ' in template

    def read(self, parser: ToolCallParser) -> Reading[None]:
        """Objects, each with or without the tag, ``;`` or white space between them."""
        source = parser.source
        yield from source.space()
        yield from parser.call()
        while True:
            if (yield from source.optional(";")):
                yield from source.optional(self.start)
                yield from source.space()
            elif not (yield from source.follows("{")):
                return
            yield from parser.call()

    def write(self, functions: Sequence[Function]) -> dict[str, Any]:
        """Without the tag, as the models' own template asks them to."""
        calls = [tag(f'{{"name": "{f.name}", "parameters": ', f.schema, "}") for f in functions]
        return one_or_more(calls, separator="; ")


@register_format
class Mistral(ToolCallFormat):
    """Mistral: ``[TOOL_CALLS] [{"name": ..., "arguments": {...}}, ...]``; ``[TOOL_CALLS]name[ARGS]{...}``.

    The second form is repeated for every call. Some models write ``[CALL_ID]`` and an id before ``[ARGS]``,
    some leave ``[ARGS]`` out. All of these are read; forced calls have the template's form.

    Attributes:
        after_name: markers between a call's name and arguments, None where calls are a list of objects.
    """

    name = "mistral"
    start = "[TOOL_CALLS]"

    def __init__(self, after_name: tuple[str, ...] | None = None) -> None:
        self.after_name = after_name

    def of_template(self, template: str) -> ToolCallFormat:
        """Told by the markers in it, or by a name that follows ``[TOOL_CALLS]``."""
        markers = tuple(marker for marker in (_ID_MARKER, _ARGUMENTS_MARKER) if marker in template)
        return Mistral(markers) if markers or _NAME_FOLLOWS.search(template) else self

    def read(self, parser: ToolCallParser) -> Reading[None]:
        """A list of objects, or one name with arguments."""
        source = parser.source
        yield from source.space()
        if (yield from source.peek()) == "[":
            yield from self._read_list(parser)
            return
        name = yield from source.word(is_name_character, 64)
        if (yield from source.optional(_ID_MARKER)):
            yield from source.space()
            yield from source.word(str.isalnum, 64)
        yield from source.optional(_ARGUMENTS_MARKER)
        yield from source.space()
        if not name or (yield from source.peek()) not in ("{", '"'):
            raise Malformed
        yield from parser.arguments(name)

    def _read_list(self, parser: ToolCallParser) -> Reading[None]:
        source = parser.source
        yield from source.expect("[")
        yield from source.space()
        yield from parser.call()
        while (yield from source.optional(",")):
            yield from source.space()
            yield from parser.call()
        yield from source.optional("]")

    def write(self, functions: Sequence[Function]) -> dict[str, Any]:
        """One list, or one name after the other."""
        if self.after_name is None:
            calls = [tag(f'{{"name": "{f.name}", "arguments": ', f.schema, "}") for f in functions]
            beginning, end = ({"type": "const_string", "value": text} for text in (f"{self.start} [", "]"))
            return {"type": "sequence", "elements": [beginning, one_or_more(calls, separator=", "), end]}
        return one_or_more([self._tag(f) for f in functions], separator="")

    def _tag(self, function: Function) -> dict[str, Any]:
        between: list[dict[str, Any]] = []
        for marker in self.after_name or ():
            between.append({"type": "const_string", "value": marker})
            if marker == _ID_MARKER:
                between.append({"type": "regex", "pattern": "[a-zA-Z0-9]{9}"})
        arguments = {"type": "json_schema", "json_schema": function.schema}
        content = {"type": "sequence", "elements": [*between, arguments]}
        return {"type": "tag", "begin": self.start + function.name, "content": content, "end": ""}


@register_format
class Qwen25(ToolCallFormat):
    """Qwen 2.5 and 3, Hermes: ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``, repeated."""

    name = "qwen25"
    start = "<tool_call>"

    def stands_in(self, template: str) -> bool:
        """Other models put something else than JSON between the same tags."""
        return self.start in template and '"arguments"' in template

    def read(self, parser: ToolCallParser) -> Reading[None]:
        """One object, or several, and the end tag if it is there."""
        yield from parser.source.space()
        yield from parser.call()
        while (yield from parser.source.follows("{")):
            yield from parser.call()
        yield from parser.source.optional("</tool_call>")

    def write(self, functions: Sequence[Function]) -> dict[str, Any]:
        """One pair of tags per call."""
        beginning = '<tool_call>\n{{"name": "{}", "arguments": '
        calls = [tag(beginning.format(f.name), f.schema, "}\n</tool_call>") for f in functions]
        return one_or_more(calls, separator="\n")
