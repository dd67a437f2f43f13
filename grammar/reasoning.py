"""Telling what a model thinks from what it answers, while the text arrives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from ..errors import ConfigError
from .pieces import SPACE, Reading, Source


@dataclass(frozen=True)
class ReasoningFormat:
    """How a family of models marks its reasoning, which stands at the beginning of a reply.

    ``implied``: a reply begins with reasoning even where neither it nor the prompt writes ``start``.
    """

    name: str
    start: str = "<think>"
    end: str = "</think>"
    implied: bool = False

    def begins_in(self, prompt: str, reply_start: str) -> bool:
        """Whether the model reasons after ``prompt``, which ends with ``reply_start``, the reply so far."""
        if reply_start:
            return reply_start.rfind(self.start) > reply_start.rfind(self.end)
        prompt = prompt.rstrip()
        return prompt.endswith(self.start) or (self.implied and not prompt.endswith(self.end))

    def write_before(self, answer: dict[str, Any], *, inside: bool) -> dict[str, Any]:
        """``answer``, a structural-tag format, behind reasoning, as one format.

        ``inside``: the reply begins in the reasoning; else there may be some or none.
        """
        reasoning: dict[str, Any] = {
            "type": "tag",
            "begin": "" if inside else self.start,
            "content": {"type": "any_text"},
            "end": self.end,
        }
        lines = {"type": "regex", "pattern": r"\n{0,2}"}
        if inside:
            return {"type": "sequence", "elements": [reasoning, lines, answer]}
        before = {"type": "sequence", "elements": [reasoning, lines]}
        return {"type": "sequence", "elements": [{"type": "optional", "content": before}, answer]}


REASONING_FORMATS: Final = {
    one.name: one for one in (ReasoningFormat("deepseek-r1", implied=True), ReasoningFormat("qwen3"))
}
"""By the names that the option ``reasoning_parser`` takes."""


def get_reasoning_format(name: str) -> ReasoningFormat:
    """The format called ``name``; raises ConfigError if there is none."""
    if name not in REASONING_FORMATS:
        raise ConfigError(f"reasoning_parser must be one of {', '.join(REASONING_FORMATS)}, got {name!r}.")
    return REASONING_FORMATS[name]


@dataclass(frozen=True)
class Split:
    """What a piece of text shows: more of the ``reasoning``, and more of the ``content`` after it."""

    reasoning: str = ""
    content: str = ""


class ReasoningSplitter:
    """Splits a reply fed piece by piece, however it is cut.

    The markers and the white space around the reasoning belong to neither part. A reply that begins with no
    marker, and where none is implied, is content; one whose reasoning never ends is reasoning.
    """

    def __init__(self, reasoning_format: ReasoningFormat, *, inside: bool) -> None:
        self._format = reasoning_format
        self._inside = inside  # without a marker of its own
        self._source = Source()
        self._is_reasoning = False  # what the source drops next is
        self._reasoning = self._content = ""
        self._reading = self._read()

    def feed(self, piece: str) -> Split:
        """Take in more text; return what it shows."""
        self._source.push(piece)
        return self._advance()

    def finish(self) -> Split:
        """Return what was held back, now that the text has ended."""
        self._source.ended = True
        return self._advance()

    def _advance(self) -> Split:
        next(self._reading, None)
        if self._is_reasoning:
            self._reasoning += self._source.drop(self._source.position)
        split = Split(self._reasoning, self._content)
        self._reasoning = self._content = ""
        return split

    def _read(self) -> Reading[None]:
        source = self._source
        if (yield from source.optional(self._format.start)) or self._inside:
            yield from source.space()
            source.drop(source.position)
            self._is_reasoning = True
            found = yield from source.find(self._format.end)
            self._is_reasoning = False
            before = source.text if found < 0 else source.text[:found]
            self._reasoning += before.rstrip(SPACE)
            source.drop(len(before) + len(self._format.end))
            yield from source.space()
            source.drop(source.position)
        while True:
            self._content += source.drop(len(source.text))
            yield
