"""JSON numbers as trees: within bounds, and multiples."""

from __future__ import annotations

from decimal import Decimal

from ...errors import GrammarError
from ..regex import parse
from ..tree import EMPTY, Chars, Node, Repeat, choice, joined, literal, optional, sequence

_DIGITS = 15  # of an integer, or before or after the point: a double holds no more
_LIMIT = 10**_DIGITS - 1
_MAX_LISTED = 1000  # multiples within bounds are listed

ANY_NUMBER = rf"-?(?:0|[1-9]\d{{0,{_DIGITS - 1}}})(?:\.\d{{1,{_DIGITS}}})?(?:[eE][+-]?\d{{1,2}})?"


def any_number() -> Node:
    """Any number a double can hold."""
    return parse(ANY_NUMBER)


def integers(least: int | None, most: int | None, multiple_of: int | None = None) -> Node:
    """Integers within inclusive bounds. Raises GrammarError if there are none, or too many multiples."""
    low, high = (
        max(-_LIMIT, -_LIMIT if least is None else least),
        min(_LIMIT, _LIMIT if most is None else most),
    )
    if multiple_of is not None:
        first, last = -(-low // multiple_of), high // multiple_of
        if last - first >= _MAX_LISTED:
            raise GrammarError(
                f"multipleOf {multiple_of} is supported where bounds leave at most {_MAX_LISTED} multiples:"
                " narrow minimum and maximum"
            )
        values = [str(n * multiple_of) for n in range(first, last + 1)]
        if not values:
            raise GrammarError(f"no multiple of {multiple_of} lies between minimum and maximum")
        return choice(*map(literal, values))
    if low > high:
        raise GrammarError(f"no integer lies between minimum {least} and maximum {most}")
    options = []
    if high >= 0:
        options.append(_counts(max(low, 0), high))
    if low < 0:
        options.append(sequence(literal("-"), _counts(max(1, -high), -low)))
    return choice(*options)


def _counts(low: int, high: int) -> Node:
    """Integers ``0 <= low .. high`` without leading zeros."""
    options = []
    for length in range(len(str(low)), len(str(high)) + 1):
        first = max(low, 10 ** (length - 1) if length > 1 else 0)
        options.append(_fixed(str(first), str(min(high, 10**length - 1))))
    return choice(*options)


def _digit(low: str, high: str) -> Node:
    return Chars(joined([(ord(low), ord(high))]))


def _fixed(low: str, high: str) -> Node:
    """Digit strings between two of the same length."""
    if not low:
        return EMPTY
    rest = len(low) - 1
    if set(low) == {"0"} and set(high) == {"9"}:
        return Repeat(_digit("0", "9"), rest + 1, rest + 1)
    if low[0] == high[0]:
        return sequence(literal(low[0]), _fixed(low[1:], high[1:]))
    begin, end = int(low[0]), int(high[0])
    options = []
    if set(low[1:]) - {"0"}:
        options.append(sequence(literal(low[0]), _fixed(low[1:], "9" * rest)))
        begin += 1
    last = None
    if set(high[1:]) - {"9"}:
        last = sequence(literal(high[0]), _fixed("0" * rest, high[1:]))
        end -= 1
    if begin <= end:
        options.append(sequence(_digit(str(begin), str(end)), _fixed("0" * rest, "9" * rest)))
    return choice(*options, *([] if last is None else [last]))


def numbers(low: Decimal | None, high: Decimal | None, *, open_low: bool, open_high: bool) -> Node:
    """Numbers within bounds, without exponents; ``open_*`` leave the bound itself out.

    Raises GrammarError if there are none.
    """
    if low is None and high is None:
        return any_number()
    options = []
    if high is None or high >= 0:
        start, opened = (low, open_low) if low is not None and low >= 0 else (Decimal(0), False)
        options += _positive(start, high, opened, open_high)
    if low is None or low < 0:
        start, opened = (-high, open_high) if high is not None and high <= 0 else (Decimal(0), False)
        negative = _positive(start, None if low is None else -low, opened, open_low)
        options += [sequence(literal("-"), node) for node in negative]
    if not options:
        raise GrammarError(f"no number lies between minimum {low} and maximum {high}")
    return choice(*options)


def _positive(low: Decimal, high: Decimal | None, open_low: bool, open_high: bool) -> list[Node]:
    """Numbers ``0 <= low .. high``, by their whole part: that of ``low``, those between, that of ``high``."""
    first = int(low)
    last = _LIMIT if high is None else min(int(high), _LIMIT)
    below = _fraction(low - first)
    above = None if high is None or last < int(high) else _fraction(high - last)
    if first > last:
        return []
    if first == last:
        return _in_cell(first, below, above, open_low, open_high)
    options = _in_cell(first, below, None, open_low, False)
    if first + 1 <= last - 1:
        options.append(sequence(_counts(first + 1, last - 1), _any_fraction()))
    return options + _in_cell(last, "", above, False, open_high)


def _any_fraction() -> Node:
    return optional(sequence(literal("."), Repeat(_digit("0", "9"), 1, _DIGITS)))


def _fraction(value: Decimal) -> str:
    """The digits behind the point, without zeros at their end."""
    return format(value, "f").partition(".")[2].rstrip("0")


def _in_cell(whole: int, low: str, high: str | None, open_low: bool, open_high: bool) -> list[Node]:
    """Numbers of this whole part with fractions between ``low`` and ``high`` (None: up to the next)."""
    options: list[Node] = []
    above = high is None or high != "" or not open_high
    if not low and not open_low and above:
        options.append(EMPTY)
    digits = _behind_point(low, high, open_low, open_high, _DIGITS, may_end=False)
    if digits is not None:
        options.append(sequence(literal("."), digits))
    return [sequence(literal(str(whole)), choice(*options))] if options else []


def _behind_point(
    low: str | None, high: str | None, open_low: bool, open_high: bool, room: int, *, may_end: bool = True
) -> Node | None:
    """Digits with ``low <= 0.digits <= high``; None is no bound; at most ``room``. None: there are none."""
    if low == "" and not open_low:
        low = None
    if low is None and high is None:
        return Repeat(_digit("0", "9"), 0 if may_end else 1, room) if room or may_end else None
    ends = (low is None or (low == "" and not open_low)) and (high is None or high != "" or not open_high)
    options: list[Node] = [EMPTY] if may_end and ends else []
    if room and high != "":
        by_rest: dict[Node, list[int]] = {}
        for digit in range(10):
            rest_low, rest_high = low, high
            if low is not None:
                bound = int(low[0]) if low else 0
                if digit < bound:
                    continue
                rest_low = None if digit > bound else low[1:]
            if high is not None:
                bound = int(high[0])
                if digit > bound:
                    continue
                rest_high = None if digit < bound else high[1:]
            rest = _behind_point(rest_low, rest_high, open_low, open_high, room - 1)
            if rest is not None:
                by_rest.setdefault(rest, []).append(digit)
        for rest, digits in by_rest.items():
            options.append(sequence(Chars(joined([(48 + d, 48 + d) for d in digits])), rest))
    return choice(*options) if options else None
