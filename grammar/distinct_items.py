"""``uniqueItems``, seen to beside a grammar: none can say that an item was not there before.

A list whose items must differ has one more way to go on behind its bracket, a mark, by which
:class:`DistinctItems` knows it. From there on it reads the document, keeps the items of the list, and takes
from the masks what would end an item that is there already. Items are compared as JSON compares: 1 and 1.0
are equal, and so are texts with other escapes.

Where items cannot go on in any way (those of ``CAREFUL`` lists: they have a pattern, bounds, fixed parts) it
also takes what could only ever become such an item. That is asked of the grammar along the items that begin
like this one: whether something else may follow, there or further on.
"""

from __future__ import annotations

import bisect
import itertools
import json
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from ..errors import GrammarError
from .json_schema.kinds import key
from .json_schema.tokens import CAREFUL, FREE
from .string_counts import OUTSIDE, PLAIN, step
from .tree import SIGN, Lexeme, Node, Rules, parts, word

if TYPE_CHECKING:
    from .interface import Matcher

_NONE: Final = SIGN + "w"  # where this may stand, anything may
MARKS: Final = (word(FREE), word(CAREFUL))
_PROBES: Final = 256  # places that are asked about for one mask
_WHOLE: Final = r'[\[,]\s*(?:"(?:[^"\\]|\\.)*"|[^\s",\[\]{}]+\s*[,\]}]|\{\s*\}|\[\s*\])'
"""An item from beginning to end."""


class _TokenSet:
    """Some tokens of a vocabulary, found again in masks."""

    def __init__(self, tokens: list[bytes], pattern: str) -> None:
        found = re.compile(pattern.encode(), re.DOTALL)
        self._packed = np.packbits([found.search(token) is not None for token in tokens], bitorder="little")

    def within(self, bits: np.ndarray) -> list[int]:
        """Those that a mask has, given as uint8."""
        both = self._packed & bits[: len(self._packed)]
        places = np.flatnonzero(both)
        return _ids(places, both[places])


def _ids(places: np.ndarray, values: np.ndarray) -> list[int]:
    """The numbers of the bits set in ``values`` uint8, which stand in these places."""
    rows, columns = np.nonzero(np.unpackbits(values[:, None], axis=1, bitorder="little"))
    return (places[rows] * 8 + columns).tolist()


def _has(bits: np.ndarray, token_id: int) -> bool:
    return bool(bits[token_id >> 3] >> (token_id & 7) & 1)


class ItemTokens:
    """Which tokens of a vocabulary may end an item of a list, and which stand for given bytes."""

    def __init__(self, tokens: list[bytes]) -> None:
        self.tokens = tokens
        self.longest = max(map(len, tokens), default=0)
        self.kept = np.packbits([SIGN.encode() not in token for token in tokens], bitorder="little")
        self.whole = _TokenSet(tokens, _WHOLE)
        self.closing = _TokenSet(tokens, rf"[\]}}]|{_WHOLE}")
        self.ending = _TokenSet(tokens, r'[\]},"]')
        self.escaping = _TokenSet(tokens, r'\\.*"')
        self.next = _TokenSet(tokens, r'"\s*,')
        self.ids: dict[bytes, list[int]] = {}  # by the bytes that they stand for
        for token_id, data in enumerate(tokens):
            self.ids.setdefault(data, []).append(token_id)
        self._in_order = sorted((data, token_id) for token_id, data in enumerate(tokens) if b'"' in data)

    def beginning_with(self, text: bytes) -> Iterator[int]:
        """Token ids of those that begin with a text which has a quote."""
        for at in range(bisect.bisect_left(self._in_order, (text, -1)), len(self._in_order)):
            data, token_id = self._in_order[at]
            if not data.startswith(text):
                break
            yield token_id


class _Items:
    """The items of one list so far: their texts, and where each ended, by what they are equal to."""

    def __init__(self, is_careful: bool) -> None:
        self.is_careful = is_careful
        self.found: dict[str, tuple[bytes, int]] = {}

    def copy(self) -> _Items:
        """The same items, to go on from on their own."""
        other = _Items(self.is_careful)
        other.found = dict(self.found)
        return other

    def cut(self, end: int) -> None:
        """Forget what ended there or later."""
        while self.found and next(reversed(self.found.values()))[1] >= end:
            self.found.popitem()


class _Open(NamedTuple):
    """A list or object that has begun; ``begin`` is where the item of a list begins, in the text."""

    items: _Items | None  # of a list whose items must differ
    is_list: bool
    begin: int


class _Place(NamedTuple):
    """Where an output stands in the outermost such list; ``text`` and ``ended`` are what is new there."""

    mode: int = OUTSIDE  # of a string
    stack: tuple[_Open, ...] = ()
    text: bytes = b""
    ended: tuple[tuple[_Items, str, bytes, int], ...] = ()


class DistinctItems:
    """A :class:`.watched.Watch` for one output."""

    def __init__(self, tokens: ItemTokens) -> None:
        self.tokens = tokens
        self.known: dict[bytes, bool] = {}
        """Whether what begins like an item that is there can become another, by :meth:`item_text`."""
        self._text = bytearray()  # of lists whose items must differ, one after the other
        self._places = [_Place()]
        self._ends = [0]  # of the text, for each place

    def narrow(self, mask: np.ndarray, matcher: Matcher) -> None:
        """Take from a mask what repeats an item, or can only come to that."""
        tokens = self.tokens
        bits = mask.view(np.uint8)
        bits[: len(tokens.kept)] &= tokens.kept
        place, asking = self._places[-1], _Asking(self, matcher)
        begun, removed = self.item_text(place), False
        # the longest first: where it leads on, so does what it begins with
        for token in sorted(self._doubtful(place, bits), key=lambda token: -len(tokens.tokens[token])):
            if not self.known.get(begun + tokens.tokens[token]) and asking.behind(place, token) is None:
                bits[token >> 3] &= ~np.uint8(1 << (token & 7))
                removed = True
        if removed and not bits.any():
            raise GrammarError("uniqueItems: there is no further item that the list does not have already.")

    def keeps(self, token_id: int, matcher: Matcher) -> bool:
        """Take the next token if it repeats no item."""
        place = _Asking(self, matcher).behind(self._places[-1], token_id)
        if place is None:
            return False
        if len(place.stack) != len(self._places[-1].stack) or place.ended:
            self.known.clear()
        self._text += place.text
        for items, value, text, end in place.ended:
            items.found[value] = text, end
        self._places.append(place._replace(text=b"", ended=()))
        self._ends.append(len(self._text))
        return True

    def rollback(self, count: int) -> None:
        """Take back the last tokens."""
        del self._places[len(self._places) - count :], self._ends[len(self._ends) - count :]
        del self._text[self._ends[-1] :]
        self.known.clear()
        for opened in self._places[-1].stack:
            if opened.items is not None:
                opened.items.cut(self._ends[-1])

    def fork(self) -> DistinctItems:
        """Another one that stands here."""
        other = DistinctItems(self.tokens)
        other._text = bytearray(self._text)
        copies = []
        for opened in self._places[-1].stack:
            items = opened.items
            copies.append(opened if items is None else opened._replace(items=items.copy()))
        other._places = [self._places[-1]._replace(stack=tuple(copies))]
        other._ends = [len(self._text)]
        return other

    # one token further

    def after(self, place: _Place, data: bytes, follows: Callable[[bytes], bool]) -> _Place | None:
        """The place behind a token; None if an item in it is there already. ``follows``: the grammar's."""
        mode, stack, text, ended = place
        for at, byte in enumerate(data):
            if not stack:
                if byte == 0x5B and (items := _marked(data[: at + 1], follows)):
                    stack = (_Open(items, True, len(self._text) + len(text)),)
                continue
            end = len(self._text) + len(text)  # of what came before this byte
            text += data[at : at + 1]
            if mode != OUTSIDE:
                mode, _ = step(mode, byte)
                closed = mode == OUTSIDE
            elif byte == 0x22:
                mode, closed = PLAIN, False
            elif byte in b"[{":
                items = _marked(data[: at + 1], follows) if byte == 0x5B else None
                stack, closed = (*stack, _Open(items, byte == 0x5B, end + 1)), False
            elif byte in b",]" and stack[-1].is_list:
                item = self._ended(stack[-1], end, text, ended)
                if item is None:
                    return None
                ended += item
                stack = stack[:-1] if byte == 0x5D else (*stack[:-1], stack[-1]._replace(begin=end + 1))
                closed = byte == 0x5D
            else:
                closed = byte == 0x7D
                stack = stack[:-1] if closed else stack
            # a string, list or object is whole here, and not only where its list goes on
            if (
                closed
                and stack
                and stack[-1].is_list
                and self._ended(stack[-1], end + 1, text, ended) is None
            ):
                return None
        return _Place(mode, stack, text, ended)

    def _ended(self, opened: _Open, end: int, text: bytes, ended: tuple) -> tuple | None:
        """The item that ends there, as one of ``ended``, if there is any; None if the list has it already."""
        if opened.items is None:
            return ()
        item = self.since(opened.begin, text)[: end - opened.begin].strip()
        if not item:
            return ()
        try:
            given = json.loads(item)
            value = key(given)
        except (ValueError, RecursionError):  # not as a document has it
            given, value = None, item.decode(errors="replace")
        if isinstance(given, str) and b"\\" in item:  # without escapes that it need not have
            item = json.dumps(given, ensure_ascii=False).encode(errors="surrogatepass")
        if value in opened.items.found or any(one[0] is opened.items and one[1] == value for one in ended):
            return None
        return ((opened.items, value, item, end),)

    def item_text(self, place: _Place) -> bytes:
        """The item of the outermost such list so far, and what follows it there."""
        return self.since(self._places[-1].stack[0].begin if self._places[-1].stack else 0, place.text)

    def since(self, begin: int, text: bytes) -> bytes:
        """What was written from ``begin`` on, ``text`` being new."""
        return bytes(self._text[begin:]) + text[max(begin - len(self._text), 0) :]

    # what has to be looked at

    def _doubtful(self, place: _Place, bits: np.ndarray) -> set[int]:
        """Which tokens of a mask may end an item that is there already, or lead to one."""
        tokens = self.tokens
        lists = [opened.items for opened in place.stack if opened.items is not None]
        if not any(items.found for items in lists):
            return set(tokens.whole.within(bits))
        top = place.stack[-1]
        if place.mode == OUTSIDE:
            found = set(tokens.ending.within(bits))
        elif top.items is None:
            found = set(tokens.closing.within(bits))
        else:
            found = self._ending_text(top.items, top.begin, bits)
            if len(lists) > 1:
                found.update(tokens.closing.within(bits))
        for rest in {rest for opened in place.stack for rest in self.rests(opened, place)}:
            for length in range(1, min(len(rest), tokens.longest) + 1):
                found.update(one for one in tokens.ids.get(rest[:length], ()) if _has(bits, one))
        return found

    def _ending_text(self, items: _Items, begin: int, bits: np.ndarray) -> set[int]:
        """Which tokens may end the text here, an item, like one that is there; or lead to a further item.

        ``begin``: where the text, of the list with ``items``, begins.
        """
        tokens = self.tokens
        begun = self.since(begin, b"").lstrip()
        if b"\\" in begun:
            return set(tokens.ending.within(bits))
        found = set(tokens.whole.within(bits)).union(tokens.escaping.within(bits))
        if items.is_careful:
            found.update(tokens.next.within(bits))
        for item, _ in items.found.values():
            if item.startswith(begun):
                found.update(one for one in tokens.beginning_with(item[len(begun) :]) if _has(bits, one))
        return found

    def rests(self, opened: _Open, place: _Place) -> Iterator[bytes]:
        """How items of a list that must be careful went on from where this one stands."""
        if opened.items is None or not opened.items.is_careful:
            return
        begun = self.since(opened.begin, place.text)
        stripped = begun.lstrip()
        new = (item for items, _, item, _ in place.ended if items is opened.items)
        for item in itertools.chain((item for item, _ in opened.items.found.values()), new):
            if item.startswith(stripped):
                yield item[len(stripped) :]
                if not begun:  # behind the comma
                    yield b" " + item


class _Asking:
    """Whether tokens may follow, for one mask of ``matcher``."""

    def __init__(self, watch: DistinctItems, matcher: Matcher) -> None:
        self._watch = watch
        self._matcher = matcher
        self._tokens = watch.tokens.tokens
        self._kept = watch.tokens.kept
        self._probes = _PROBES

    def behind(self, place: _Place, token: int) -> _Place | None:
        """The place behind a token; None if no item may come of it that is not there yet."""
        after = self._watch.after(place, self._tokens[token], self._matcher.follows)
        if after is None or (self._is_repeating(after) and not self._leads_on(self._matcher, token, after)):
            return None
        return after

    def _is_repeating(self, place: _Place) -> bool:
        """Whether an item is, so far, the beginning of one that is there."""
        return any(True for opened in place.stack for _ in self._watch.rests(opened, place))

    def _leads_on(self, matcher: Matcher, token: int, place: _Place) -> bool:
        """Whether an item that is not there yet may follow ``token``, which leads to ``place``."""
        known, text = self._watch.known, self._watch.item_text(place)
        if text not in known:
            fork = matcher.fork()
            self._probes -= 1
            if self._probes < 0 or not fork.accept(token):
                return True
            known[text] = self._goes_on(fork, place)
            if known[text]:
                known.update((text[:end], True) for end in range(len(text)))
        return known[text]

    def _goes_on(self, matcher: Matcher, place: _Place) -> bool:
        """Whether an item that is not there yet may follow where ``matcher`` stands."""
        mask = np.zeros((1, -(-len(self._tokens) // 32)), np.int32)
        matcher.fill(mask, 0)
        further = []
        bits = mask.view(np.uint8)[0, : len(self._kept)] & self._kept
        for byte in np.flatnonzero(bits):
            for token in _ids(np.array([byte]), bits[byte : byte + 1]):
                after = self._watch.after(place, self._tokens[token], matcher.follows)
                if after is None:
                    continue
                if not self._is_repeating(after):
                    return True
                further.append((token, after))
        return any(self._leads_on(matcher, token, after) for token, after in further)


def _marked(begun: bytes, follows: Callable[[bytes], bool]) -> _Items | None:
    """An empty list of items, if those of the list that has just begun must differ."""
    if not follows(begun + SIGN.encode()) or follows(begun + _NONE.encode()):
        return None
    return _Items(is_careful=follows(begun + CAREFUL.encode()))


def has_distinct_items(rules: Rules) -> bool:
    """Whether there is a list in a language whose items must differ."""
    return any(map(_has_mark, rules.values()))


def _has_mark(node: Node) -> bool:
    if isinstance(node, Lexeme):
        return node in MARKS
    return any(map(_has_mark, parts(node)))
