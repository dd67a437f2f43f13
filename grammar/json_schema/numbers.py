"""JSON numbers as trees: within bounds, and multiples."""

from __future__ import annotations

import functools
import math
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple

from ...errors import GrammarError
from ..regex import parse
from ..tree import EMPTY, Chars, Node, Repeat, choice, joined, literal, optional, sequence
from .kinds import NoValue

_DIGITS = 15  # of an integer, or before or after the point: a double holds no more
_LIMIT = 10**_DIGITS - 1
_LARGEST = 10**20  # of integers where bounds ask for such
_MAX_LISTED = 1000  # multiples within bounds are listed

ANY_NUMBER = rf"-?(?:0|[1-9]\d{{0,{_DIGITS - 1}}})(?:\.\d{{1,{_DIGITS}}})?(?:[eE][+-]?\d{{1,2}})?"


class Bounds(NamedTuple):
    """The lowest and highest number, None is no limit; ``open_*`` leave the bound itself out."""

    low: Decimal | None = None
    high: Decimal | None = None
    open_low: bool = False
    open_high: bool = False

    @classmethod
    def of(cls, option: dict) -> Bounds:
        """What an option says."""
        given = {
            name: Decimal(repr(option[name]))
            for name in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
            if name in option
        }
        low, high = given.get("minimum"), given.get("maximum")
        above, below = given.get("exclusiveMinimum"), given.get("exclusiveMaximum")
        open_low = above is not None and (low is None or above >= low)
        open_high = below is not None and (high is None or below <= high)
        return cls(above if open_low else low, below if open_high else high, open_low, open_high)

    def whole(self, unit: Decimal = Decimal(1)) -> tuple[int | None, int | None]:
        """The lowest and the highest multiple of ``unit``, as how many times that is."""
        least = most = None
        if self.low is not None:
            times = Fraction(self.low) / Fraction(unit)
            least = math.floor(times) + 1 if self.open_low else math.ceil(times)
        if self.high is not None:
            times = Fraction(self.high) / Fraction(unit)
            most = math.ceil(times) - 1 if self.open_high else math.floor(times)
        return least, most

    def __str__(self) -> str:
        return f"minimum {self.low} and maximum {self.high}"


def any_number() -> Node:
    """Any number a double can hold."""
    return parse(ANY_NUMBER)


def multiples(bounds: Bounds, unit: Decimal, *, whole: bool) -> Node:
    """Multiples of a unit within bounds; ``whole``: integers only.

    Raises NoValue if there are none, GrammarError if they cannot be written.
    """
    if whole and unit != unit.to_integral_value():
        numerator = Fraction(unit).numerator  # of the unit and of 1
        return multiples(bounds, Decimal(numerator), whole=True)
    least, most = bounds.whole(unit)
    if least is not None and most is not None:
        if least > most:
            raise NoValue(f"no multiple of {unit} lies between {bounds}")
        if most - least < _MAX_LISTED:
            return choice(*(literal(_written(n * unit)) for n in range(least, most + 1)))
    digits, exponent = _digits(unit)
    if digits == (1,) and exponent <= 0:
        return numbers(bounds, -exponent) if exponent else integers(*bounds.whole())
    return _by_last_digits(bounds, unit)


def _digits(unit: Decimal) -> tuple[tuple[int, ...], int]:
    """The digits of a unit, without zeros at the end, and the power of ten that they count."""
    _, digits, exponent = unit.normalize().as_tuple()
    assert isinstance(exponent, int)  # letters are those of NaN and infinity
    return digits, exponent


def _by_last_digits(bounds: Bounds, unit: Decimal) -> Node:
    """Multiples, without an upper bound, of what divides a power of ten: their last digits tell."""
    _, exponent = _digits(unit)
    places = max(-exponent, 0)
    count = int(unit.scaleb(places))
    size = next((size for size in range(max(places, 1), places + 4) if 10**size % count == 0), None)
    first = None if size is None or bounds.low is None else bounds.low.scaleb(places - size)
    if size is None or bounds.high is not None or (first is not None and (first < 0 or first % 1)):
        raise GrammarError(
            f"multipleOf {unit} is supported where bounds leave at most {_MAX_LISTED} multiples: narrow"
            " minimum and maximum"
        )
    more = _counts(max(1, int(first or 0)), _LIMIT)
    options: list[Node] = []
    for number in range(0, 10**size, count):
        small = Decimal(number).scaleb(-places)
        if not first and (number or not bounds.open_low):
            options.append(literal(_written(small)))
        if number or not (first and bounds.open_low):
            options.append(sequence(more, _pointed(f"{number:0{size}d}", places)))
        else:  # not the bound itself
            options.append(sequence(_counts(int(first) + 1, _LIMIT), _pointed("0" * size, places)))
    if bounds.low is None:
        options.append(sequence(literal("-"), choice(*(one for one in options if one != literal("0")))))
    return choice(*options)


def _pointed(digits: str, places: int) -> Node:
    """The last digits of a number, of which so many stand behind the point."""
    if not places:
        return literal(digits)
    before, behind = digits[: len(digits) - places], digits[len(digits) - places :]
    return (
        literal(before + "." + behind)
        if behind.strip("0")
        else sequence(literal(before), optional(literal("." + behind)))
    )


def _written(value: Decimal) -> str:
    text = format(value, "f")
    return (text.rstrip("0").rstrip(".") if "." in text else text) or "0"


@functools.lru_cache(maxsize=64)
def integers(least: int | None, most: int | None) -> Node:
    """Integers within inclusive bounds. Raises NoValue if there are none."""
    limit = _LIMIT
    given = [abs(one) for one in (least, most) if one is not None]
    if (least or 0) > limit or (most or 0) < -limit:
        limit = _LARGEST
    elif given:
        limit = max(limit, min(max(given), 2**64))
    low, high = max(-limit, -limit if least is None else least), min(limit, limit if most is None else most)
    if low > high:
        raise NoValue(f"no integer lies between minimum {least} and maximum {most}")
    options = []
    if high >= 0:
        options.append(_counts(max(low, 0), high))
    if low < 0:
        options.append(sequence(literal("-"), _counts(max(1, -high), -low)))
    return choice(*options)


def fractions() -> Node:
    """Numbers that are no integers."""
    return parse(rf"-?(?:0|[1-9]\d{{0,{_DIGITS - 1}}})\.\d{{0,{_DIGITS - 6}}}[1-9]\d{{0,5}}")


def _counts(low: int, high: int) -> Node:
    """Integers ``0 <= low .. high`` without leading zeros; all of several lengths are one repetition."""
    options: list[Node] = [literal("0")] if low == 0 else []
    whole: list[int] = []  # lengths, less the first digit
    low = max(low, 1)
    for length in range(len(str(low)), len(str(high)) + 1):
        smallest, largest = 10 ** (length - 1), 10**length - 1
        if low <= smallest and largest <= high:
            whole.append(length - 1)
        elif low <= high:
            options.append(_fixed(str(max(low, smallest)), str(min(high, largest))))
    if whole:
        rest = Repeat(_digit("0", "9"), whole[0], whole[-1]) if whole[-1] else EMPTY
        options.append(sequence(_digit("1", "9"), rest))
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


def numbers(bounds: Bounds, places: int = _DIGITS) -> Node:
    """Numbers within bounds, without exponents, and with so many digits behind the point at most.

    Raises NoValue if there are none.
    """
    low, high = bounds.low, bounds.high
    if low is None and high is None and places == _DIGITS:
        return any_number()
    if (low is not None and low > _LIMIT) or (high is not None and high < -_LIMIT):
        return integers(*bounds.whole())
    places = min(places, _DIGITS)
    options = []
    if high is None or high >= 0:
        start, opened = (low, bounds.open_low) if low is not None and low >= 0 else (Decimal(0), False)
        options += _positive(start, high, opened, bounds.open_high, places)
    if low is None or low < 0:
        start, opened = (-high, bounds.open_high) if high is not None and high <= 0 else (Decimal(0), False)
        negative = _positive(start, None if low is None else -low, opened, bounds.open_low, places)
        options += [sequence(literal("-"), node) for node in negative]
    if not options:
        raise NoValue(f"no number lies between {bounds}")
    return choice(*options)


def _positive(low: Decimal, high: Decimal | None, open_low: bool, open_high: bool, places: int) -> list[Node]:
    """Numbers ``0 <= low .. high``, by their whole part: that of ``low``, those between, that of ``high``."""
    first = int(low)
    last = _LIMIT if high is None else min(int(high), _LIMIT)
    below = _fraction(low - first)
    above = None if high is None or last < int(high) else _fraction(high - last)
    if first > last:
        return []
    if first == last:
        return _in_cell(first, below, above, open_low, open_high, places)
    options = _in_cell(first, below, None, open_low, False, places)
    if first + 1 <= last - 1:
        options.append(sequence(_counts(first + 1, last - 1), _any_fraction(places)))
    return options + _in_cell(last, "", above, False, open_high, places)


def _any_fraction(places: int) -> Node:
    return optional(sequence(literal("."), Repeat(_digit("0", "9"), 1, places)))


def _fraction(value: Decimal) -> str:
    """The digits behind the point, without zeros at their end."""
    return format(value, "f").partition(".")[2].rstrip("0")


def _in_cell(
    whole: int, low: str, high: str | None, open_low: bool, open_high: bool, places: int
) -> list[Node]:
    """Numbers of this whole part with fractions between ``low`` and ``high`` (None: up to the next)."""
    options: list[Node] = []
    above = high is None or high != "" or not open_high
    if not low and not open_low and above:
        options.append(EMPTY)
    digits = _behind_point(low, high, open_low, open_high, places, may_end=False)
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
