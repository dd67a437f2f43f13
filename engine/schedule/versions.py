"""Which weights computed which tokens of a request."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

Label: TypeAlias = int | str
"""What a version of the weights is called: integers rise, strings are free."""


class WeightSpan(NamedTuple):
    """Output tokens ``start:end`` of a request that one version of the weights drew."""

    version: Label
    start: int
    end: int


class Versions:
    """The versions that drew a request's output tokens, in turn.

    Only the engine's thread changes it, and only between steps; others may look.
    """

    __slots__ = ("_begins",)

    def __init__(self, label: Label) -> None:
        self._begins: tuple[tuple[Label, int], ...] = ((label, 0),)

    def begin_behind(self, spans: Iterable[WeightSpan], num_tokens: int) -> None:
        """Go on from so many tokens that an earlier request drew, by the versions that it says."""
        label = self._begins[-1][0]
        begins = [(span.version, span.start) for span in spans]
        if not begins or begins[-1][0] != label:
            begins.append((label, num_tokens))
        self._begins = tuple(begins)

    def renew(self, label: Label, num_tokens: int) -> None:
        """From output token ``num_tokens`` on it is that version; one that drew none is forgotten."""
        self._begins = (
            *((old, first) for old, first in self._begins if first < num_tokens),
            (label, num_tokens),
        )

    def last(self, num_tokens: int) -> Label:
        """The version of the last of so many output tokens; of none, the one that would draw the first."""
        begins = self._begins
        index = len(begins) - 1
        while index and begins[index][1] >= num_tokens:
            index -= 1
        return begins[index][0]

    def spans(self, num_tokens: int) -> tuple[WeightSpan, ...]:
        """Of so many output tokens; none of no tokens."""
        begins = [(label, first) for label, first in self._begins if first < num_tokens]
        ends = [first for _, first in begins[1:]] + [num_tokens]
        return tuple(WeightSpan(label, first, end) for (label, first), end in zip(begins, ends))
