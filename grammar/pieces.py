"""Text that arrives in pieces, and readers of it that pause where it ends.

A reader is a generator: it yields when it needs more text than there is, and otherwise reads on as if the
text were whole. So what it finds cannot depend on where the pieces were cut.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Final, TypeVar

T = TypeVar("T")
Reading = Generator[None, None, T]
"""A reader that pauses for more text and in the end returns a ``T``."""

SPACE: Final = " \t\r\n"


class Malformed(Exception):
    """A reader met what it does not read; the character at the source's position is not consumed."""


class Source:
    """The text so far from some mark on. ``position`` counts from there; ``ended``: no more will come."""

    def __init__(self) -> None:
        self.text = ""
        self.position = 0
        self.ended = False

    def push(self, text: str) -> None:
        """Append a piece."""
        self.text += text

    def drop(self, count: int) -> str:
        """Forget and return the first ``count`` characters; the position moves along."""
        dropped, self.text = self.text[:count], self.text[count:]
        self.position = max(0, self.position - count)
        return dropped

    def peek(self) -> Reading[str]:
        """The next character, which stays; empty at the end of the text."""
        while self.position == len(self.text):
            if self.ended:
                return ""
            yield
        return self.text[self.position]

    def expect(self, allowed: str) -> Reading[str]:
        """Read one character out of ``allowed``; raises Malformed for any other, and at the end."""
        character = yield from self.peek()
        if not character or character not in allowed:
            raise Malformed
        self.position += 1
        return character

    def space(self) -> Reading[None]:
        """Read white space, if there is any."""
        while character := (yield from self.peek()):
            if character not in SPACE:
                return
            self.position += 1

    def optional(self, text: str) -> Reading[bool]:
        """Read white space and ``text``, or, if something else stands there, nothing."""
        start = self.position
        yield from self.space()
        for wanted in text:
            if (yield from self.peek()) != wanted:
                self.position = start
                return False
            self.position += 1
        return True

    def follows(self, text: str) -> Reading[bool]:
        """Whether ``text`` stands behind white space; if so the white space is read, else nothing."""
        found = yield from self.optional(text)
        self.position -= len(text) if found else 0
        return found

    def until(self, end: str) -> Reading[str]:
        """Read through the next ``end`` and return what stands before it; raises Malformed without one."""
        start = self.position
        while not self.text.endswith(end, start, self.position) or self.position - start < len(end):
            if not (yield from self.peek()):
                raise Malformed
            self.position += 1
        return self.text[start : self.position - len(end)]

    def word(self, allowed: Callable[[str], bool], limit: int) -> Reading[str]:
        """Read up to ``limit`` characters that are ``allowed``."""
        start = self.position
        while self.position - start < limit and (character := (yield from self.peek())):
            if not allowed(character):
                break
            self.position += 1
        return self.text[start : self.position]

    def find(self, marker: str) -> Reading[int]:
        """Where ``marker`` begins from the position on, or -1 once the text has ended without it.

        Before each pause the position moves behind the last character that can be no part of the marker, nor
        of the white space in front of it; whoever resumes the reader may drop the text up to there.
        """
        while True:
            found = self.text.find(marker, self.position)
            if found >= 0 or self.ended:
                return found
            rest = self.text[self.position :]
            held = next(n for n in range(len(marker) - 1, -1, -1) if rest.endswith(marker[:n]))
            self.position += len(rest[: len(rest) - held].rstrip(SPACE))
            yield
