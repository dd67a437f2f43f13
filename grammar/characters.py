r"""The classes of characters in regular expressions: ``\d``, ``\w``, ``\s``, ``.`` and ``\p{...}``.

Python and ECMA-262 differ on characters beyond ASCII. ``CLASSES`` has what both count in, ``WIDEST`` what
either does: the one is for texts that must match, the other for texts that must not.
"""

from __future__ import annotations

import functools
import itertools
import sys
import unicodedata

from .tree import LAST_CODE, Ranges, codes, complement, joined

_DIGITS = joined([(48, 57)])
_WORDS = joined([(48, 57), (65, 90), (95, 95), (97, 122)])
_SPACES = codes(" \t\n\r\f\v")
_ALL_SPACES = joined(
    [(9, 13), (28, 32), (0x85, 0x85), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029)]
    + [(0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000), (0xFEFF, 0xFEFF)]
)
CLASSES = {
    "d": _DIGITS,
    "w": _WORDS,
    "s": _SPACES,
    "D": complement(_DIGITS, 127),
    "W": complement(_WORDS, 127),
    "S": complement(_ALL_SPACES),
}
WIDEST = {
    "d": joined([*_DIGITS, (128, LAST_CODE)]),
    "w": joined([*_WORDS, (128, LAST_CODE)]),
    "s": _ALL_SPACES,
    "D": complement(_DIGITS),
    "W": complement(_WORDS),
    "S": complement(_SPACES),
}
ANY = complement(codes("\n"))
ANY_ECMA = complement(codes("\n\r\u2028\u2029"))


@functools.cache
def category(name: str) -> Ranges:
    """The characters of a general category of Unicode (``L``, ``Lu``, ...); none if there is no such."""
    return joined(
        part for full, parts in _categories().items() if name and full.startswith(name) for part in parts
    )


@functools.cache
def _categories() -> dict[str, list[tuple[int, int]]]:
    """The runs of characters of each category. Takes half a second, once."""
    found: dict[str, list[tuple[int, int]]] = {}
    begin = 0
    for full, run in itertools.groupby(map(unicodedata.category, map(chr, range(sys.maxunicode + 1)))):
        length = sum(1 for _ in run)
        found.setdefault(full, []).append((begin, begin + length - 1))
        begin += length
    return found
