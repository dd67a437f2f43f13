"""Lengths of JSON strings, counted beside xgrammar instead of by it.

To count in rules takes a state for each character, each of which is compiled for the whole vocabulary: that
is seconds for a ``maxLength`` of 256. So xgrammar is given strings of any length, and :class:`StringCounts`
takes from its masks what would make one too long, or end one too short. In a JSON document it is plain where
a string begins and ends; which lengths are meant is asked of the grammar: behind its quote a counted string
has one more way to go on, a character that no document has and the name of its :class:`Length`. A string that
may be one of several keeps the lengths of all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..errors import GrammarError
from .tree import SIGN

if TYPE_CHECKING:
    from .interface import Matcher

MAX_LENGTHS = 64

OUTSIDE = -1  # of a string
PLAIN, _ESCAPED = (
    0,
    1,
)  # inside: between characters, behind a backslash; 2 to 5: before 4 to 1 digits of a \u
_INSIDE = range(6)


class Length(NamedTuple):
    """How many characters a string has; None is no limit."""

    least: int
    most: int | None

    def both(self, other: Length) -> Length:
        """Lengths of both."""
        limits = [most for most in (self.most, other.most) if most is not None]
        return Length(max(self.least, other.least), min(limits) if limits else None)


ANY = Length(0, None)


class Place(NamedTuple):
    """Where an output stands: how it goes on, and in a string its characters so far and the length meant."""

    mode: int = OUTSIDE
    chars: int = 0
    length: Length = ANY


def step(mode: int, byte: int) -> tuple[int, bool]:
    """The next mode in a string, and whether a character begins; OUTSIDE behind its end."""
    if mode == PLAIN:
        if byte == 0x22:
            return OUTSIDE, False
        return _ESCAPED if byte == 0x5C else PLAIN, not 0x80 <= byte < 0xC0
    if mode == _ESCAPED:
        return 2 if byte == 0x75 else PLAIN, False
    return (mode + 1) % 6, False


class TokenCounts:
    """What each token of a vocabulary does to a string, from each mode that it may begin in."""

    def __init__(self, tokens: list[bytes]) -> None:
        self.tokens = tokens
        self.most = 0  # characters in a token
        self.counts = np.zeros((6, len(tokens)), np.int16)  # that begin before the string ends
        self.ends = np.zeros((6, len(tokens)), bool)
        self.signs = np.array([SIGN.encode() in token for token in tokens], bool)
        self.reopening: dict[int, list[int]] = {mode: [] for mode in (OUTSIDE, *_INSIDE)}
        """Tokens in which a string begins and is not just begun."""
        self._fill()

    def _fill(self) -> None:
        lengths = np.array([len(token) for token in self.tokens])
        order = np.argsort(-lengths, kind="stable")  # the longest first: columns of bytes become shorter
        joined = np.frombuffer(b"".join(self.tokens), np.uint8)
        starts = (np.cumsum(lengths) - lengths)[order]
        following = np.array([[step(mode, byte)[0] for byte in range(256)] for mode in _INSIDE], np.int8)
        begins = np.array([[step(mode, byte)[1] for byte in range(256)] for mode in _INSIDE], bool)
        remaining = np.searchsorted(-lengths[order], -np.arange(int(lengths.max(initial=0))), side="left")
        for mode in _INSIDE:
            modes = np.full(len(order), mode, np.int8)
            counts = np.zeros(len(order), np.int16)
            for column, longer in enumerate(remaining):
                column_bytes = joined[starts[:longer] + column]
                inside = modes[:longer] >= 0
                counts[:longer] += begins[modes[:longer], column_bytes] & inside
                modes[:longer] = np.where(inside, following[modes[:longer], column_bytes], OUTSIDE)
            self.counts[mode, order] = counts
            self.ends[mode, order] = (modes == OUTSIDE) & (lengths[order] > 0)
        self.most = int(self.counts.max(initial=0))
        for token, data in enumerate(self.tokens):
            if b'"' in data:
                for mode, found in self.reopening.items():
                    if _reopens(data, mode):
                        found.append(token)


def _reopens(data: bytes, mode: int) -> bool:
    """Whether something follows the beginning of a string in a token."""
    opened = False
    for byte in data:
        if opened:
            return True
        if mode == OUTSIDE:
            opened = byte == 0x22
            mode = PLAIN if opened else OUTSIDE
        else:
            mode, _ = step(mode, byte)
    return False


class StringCounts:
    """Where one output stands; ``lengths`` are those of a grammar by their names."""

    def __init__(
        self, tokens: TokenCounts, lengths: Mapping[str, Length], place: Place | None = None
    ) -> None:
        self._tokens = tokens
        self._lengths = lengths
        self._places = [place or Place()]

    def narrow(self, mask: np.ndarray, matcher: Matcher) -> None:
        """Take from a mask what does not keep a length. Raises GrammarError where no length is meant."""
        tokens, place = self._tokens, self._places[-1]
        least, most = place.length
        if most is not None and least > most:
            raise GrammarError("A string may be one of several, whose lengths exclude each other.")
        kept = ~tokens.signs
        if place.mode != OUTSIDE and place.length != ANY:
            counts = tokens.counts[place.mode]
            if most is not None and most - place.chars < tokens.most:
                kept &= counts <= most - place.chars
            if least > place.chars:
                kept &= ~tokens.ends[place.mode] | (counts >= least - place.chars)
        bits, follows = mask.view(np.uint8), functools.cache(matcher.follows)
        for token in tokens.reopening[place.mode]:
            if kept[token] and bits[token >> 3] >> (token & 7) & 1:
                kept[token] = self._next(token, follows) is not None
        packed = np.packbits(kept, bitorder="little")
        bits[: len(packed)] &= packed

    def keeps(self, token_id: int, matcher: Matcher) -> bool:
        """Take the next token if it keeps every length."""
        place = self._next(token_id, matcher.follows)
        if place is not None:
            self._places.append(place)
        return place is not None

    def rollback(self, count: int) -> None:
        """Take back the last tokens."""
        del self._places[len(self._places) - count :]

    def fork(self) -> StringCounts:
        """Another one that stands here."""
        return StringCounts(self._tokens, self._lengths, self._places[-1])

    def _next(self, token: int, follows: Callable[[bytes], bool]) -> Place | None:
        data = self._tokens.tokens[token]
        mode, count, length = self._places[-1]
        for at, byte in enumerate(data):
            if mode == OUTSIDE:
                if byte == 0x22:
                    mode, count, length = PLAIN, 0, self._length(data[: at + 1], follows)
                continue
            mode, begins = step(mode, byte)
            count += begins
            if length.most is not None and count > length.most:
                return None
            if mode == OUTSIDE and count < length.least:
                return None
        return Place(mode, count, length)

    def _length(self, begun: bytes, follows: Callable[[bytes], bool]) -> Length:
        """What lengths a string may have that has just begun."""
        length = ANY
        if follows(begun + SIGN.encode()):
            for name, one in self._lengths.items():
                if follows(begun + (SIGN + name).encode()):
                    length = length.both(one)
        return length
