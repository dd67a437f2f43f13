"""Regular expressions of the callers: read once, with every construct we cannot promise refused by name.

What is understood is the common part of Python's ``re`` and JSON Schema's dialect. Every string of the
resulting tree is one that ``re.fullmatch`` accepts. The other way there are fewer: ``\\d``, ``\\w`` and
``\\s`` stand for their ASCII characters, and so do ``\\D`` and ``\\W``.

Patterns of schemas are written for ECMA-262, and anchors may stand where they like: see ``patterns.py``.
"""

from __future__ import annotations

import re

from ..errors import GrammarError
from .budget import Budget, shortened
from .characters import ANY, ANY_ECMA, CLASSES, WIDEST, category
from .tree import (
    LAST_CODE,
    Anchor,
    Chars,
    Choice,
    Lookahead,
    Node,
    Ranges,
    Repeat,
    Sequence,
    codes,
    complement,
    joined,
)

_MAX_COUNT = 10_000  # of a repetition: backends write it out, state by state
_MAX_DEPTH = 100  # groups within groups
_GROUP = re.compile(r":|P?<[^\W\d]\w*>")
_COUNTS = re.compile(r"\{(?=,?\d)(\d*)(,?)(\d*)\}")
_ECMA_COUNTS = re.compile(r"\{(\d+)(,?)(\d*)\}")  # {,2} is text there

_CONTROLS = {"n": 10, "r": 13, "t": 9, "f": 12, "v": 11, "a": 7}
_EXTENSIONS = {
    "=": "lookahead (?=...)",
    "!": "negative lookahead (?!...)",
    "<=": "lookbehind (?<=...)",
    "<!": "negative lookbehind (?<!...)",
    ">": "an atomic group (?>...)",
    "P=": "a backreference (?P=...)",
    "(": "a conditional group (?(...)...)",
    "#": "a comment (?#...)",
}
_ESCAPES = {
    "b": r"the word boundary \b",
    "B": r"the word boundary \B",
    "p": r"the Unicode property \p{...}",
    "P": r"the Unicode property \P{...}",
    "k": r"the backreference \k",
    "G": r"the anchor \G",
}


def parse(pattern: str, budget: Budget | None = None) -> Node:
    """Read a regular expression that is to match whole texts.

    Raises GrammarError that names what is not supported, or what is wrong.
    """
    return _Parser(pattern, budget or Budget()).parse()


def parse_ecma(pattern: str, budget: Budget | None = None, *, widest: bool = False) -> Node:
    """Read a regular expression as ECMA-262 has it, with :class:`Anchor` and :class:`Lookahead` in the tree.

    Where dialects differ on a class of characters it has those of all; with ``widest``, those of any.
    """
    return _Parser(pattern, budget or Budget(), ecma=True, widest=widest).parse()


class _Parser:
    """Recursive descent over the pattern; ``_at`` is the next character."""

    def __init__(self, pattern: str, budget: Budget, *, ecma: bool = False, widest: bool = False) -> None:
        self._pattern = pattern
        self._budget = budget
        self._ecma = ecma
        self._widest = widest
        self._at = 0
        self._depth = 0
        self._name = f"the regex {shortened(pattern)}"

    def parse(self) -> Node:
        node = self._choice()
        if self._at < len(self._pattern):
            raise self._wrong("an unbalanced )")
        return node

    # ---- errors ------------------------------------------------------------------------------------

    def _unsupported(self, what: str, at: int | None = None) -> GrammarError:
        place = self._at if at is None else at
        return GrammarError(
            f"regex {self._pattern!r} uses {what} (at character {place}), which constrained decoding does not"
            " support. Write the pattern without it."
        )

    def _wrong(self, what: str) -> GrammarError:
        return GrammarError(f"regex {self._pattern!r} has {what} at character {self._at}.")

    # ---- the grammar -------------------------------------------------------------------------------

    def _peek(self) -> str:
        return self._pattern[self._at : self._at + 1]

    def _take(self) -> str:
        char = self._peek()
        if not char:
            raise self._wrong("an unfinished end")
        self._at += 1
        return char

    def _choice(self) -> Node:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise self._wrong(f"more than {_MAX_DEPTH} groups within each other")
        options = [self._sequence()]
        while self._peek() == "|":
            self._at += 1
            self._budget.spend(1, self._name)
            options.append(self._sequence())
        self._depth -= 1
        return options[0] if len(options) == 1 else Choice(tuple(options))

    def _sequence(self) -> Node:
        items: list[Node] = []
        while self._peek() not in ("", "|", ")"):
            if self._ecma and (char := self._peek()) in "^$":
                self._at += 1
                if self._peek() and self._peek() in "*+?":
                    raise self._unsupported(f"a repeated anchor {char}")
                items.append(Anchor(char == "^"))
                continue
            if not self._ecma and self._anchor(first=not items):
                continue
            items.append(self._quantified(self._atom()))
        return items[0] if len(items) == 1 else Sequence(tuple(items))

    def _anchor(self, *, first: bool) -> bool:
        """Skip an anchor where it says nothing that a match of the whole text does not say."""
        rest = self._pattern[self._at : self._at + 3]
        for sign in ("^", r"\A", "$", r"\Z", r"\z"):
            if rest.startswith(sign):
                opens = sign in ("^", r"\A")
                after = rest[len(sign) :]
                if self._depth > 1 or not (first if opens else after[:1] in ("", "|")):
                    raise self._unsupported(f"the anchor {sign} inside the pattern")
                self._at += len(sign)
                if self._peek() and self._peek() in "*+?{":
                    raise self._unsupported(f"a repeated anchor {sign}")
                return True
        return False

    def _quantified(self, node: Node) -> Node:
        self._budget.spend(1, self._name)
        begin = self._at
        char = self._peek()
        bounds = None
        if char and char in "*+?":
            self._at += 1
            bounds = {"*": (0, None), "+": (1, None), "?": (0, 1)}[char]
        elif found := self._counts():
            least = int(found[1] or 0)
            bounds = least, (int(found[3]) if found[3] else None) if found[2] else least
            self._at = found.end()
        if bounds is None:
            return node
        if bounds[1] is not None and bounds[0] > bounds[1]:
            raise self._wrong("a repetition {m,n} with m above n, which ends")
        if max(bounds[0], bounds[1] or 0) > _MAX_COUNT:
            raise self._unsupported(f"a repetition of more than {_MAX_COUNT}", begin)
        if self._peek() == "+":
            raise self._unsupported("a possessive quantifier", begin)
        if self._peek() == "?":  # lazy: of whole texts it accepts the same
            self._at += 1
        if (self._peek() and self._peek() in "*+?") or self._counts():
            raise self._wrong("a quantifier after a quantifier")
        if isinstance(node, Lookahead):
            raise self._unsupported("a repeated lookahead", begin)
        return Repeat(node, *bounds)

    def _counts(self) -> re.Match | None:
        """The repetition {m,n} that stands here."""
        return (_ECMA_COUNTS if self._ecma else _COUNTS).match(self._pattern, self._at)

    def _atom(self) -> Node:
        char = self._take()
        if char == "(":
            return self._group()
        if char == "[":
            return Chars(self._set())
        if char == ".":
            if self._ecma:
                return Chars(ANY if self._widest else ANY_ECMA)
            return Chars(ANY)
        if char == "\\":
            return Chars(self._escape(in_set=False)[0])
        self._at -= 1
        if char in "*+?" or self._counts():
            raise self._wrong(f"a quantifier {char} with nothing to repeat")
        self._at += 1
        return Chars(codes(char))

    def _group(self) -> Node:
        begin = self._at - 1
        if self._peek() == "?":
            self._at += 1
            rest = self._pattern[self._at : self._at + 3]
            if self._ecma and rest[:1] in ("=", "!"):
                self._at += 1
                return self._lookahead(is_wanted=rest[0] == "=")
            for sign, name in _EXTENSIONS.items():
                if rest.startswith(sign):
                    raise self._unsupported(name, begin)
            named = _GROUP.match(self._pattern, self._at)
            if not named:
                raise self._unsupported(f"the inline flags or extension (?{rest[:3]}", begin)
            self._at = named.end()
        return self._closed()

    def _closed(self) -> Node:
        """What stands up to the closing parenthesis."""
        node = self._choice()
        if self._peek() != ")":
            raise self._wrong("an unclosed (")
        self._at += 1
        return node

    def _lookahead(self, *, is_wanted: bool) -> Node:
        if not is_wanted:
            self._widest = not self._widest
        node = Lookahead(self._closed(), is_wanted)
        if not is_wanted:
            self._widest = not self._widest
        return node

    def _escape(self, *, in_set: bool) -> tuple[Ranges, Ranges]:
        """The characters of an escape, and those to take away where it stands in a negated set."""
        begin = self._at - 1
        char = self._take()
        if char in CLASSES:
            both = CLASSES[char], WIDEST[char]
            return both[::-1] if self._widest else both
        if in_set and char == "b":
            return (((8, 8),),) * 2
        if char in "pP" and self._ecma:
            return (self._property(begin, negated=char == "P"),) * 2
        if char in _ESCAPES:
            raise self._unsupported(_ESCAPES[char], begin)
        if char in _CONTROLS and not (self._ecma and char == "a"):
            return (((_CONTROLS[char],) * 2,),) * 2
        if char in "123456789":
            raise self._unsupported(f"the backreference \\{char}", begin)
        if char == "0":
            if self._peek().isdigit():
                raise self._unsupported("an octal escape", begin)
            return (((0, 0),),) * 2
        if char in "xuU" and not (self._ecma and char == "U"):
            code = self._hexadecimal(char, begin)
            return (joined([(code, code)]),) * 2
        if char.isalnum():
            raise self._unsupported(f"the escape \\{char}", begin)
        return (codes(char),) * 2

    def _property(self, begin: int, *, negated: bool) -> Ranges:
        named = re.compile(r"\{(?:(?:General_Category|gc)=)?([A-Z][a-z]?)\}").match(self._pattern, self._at)
        ranges = category(named[1]) if named else ()
        if named is None or not ranges:
            raise self._unsupported(
                "a Unicode property other than a general category such as \\p{L} or \\p{Lu}", begin
            )
        self._at = named.end()
        return complement(ranges) if negated else ranges

    def _hexadecimal(self, char: str, begin: int) -> int:
        digits = {"x": "{2}", "u": "{4}", "U": "{8}"}[char]
        expression = rf"[0-9a-fA-F]{digits}" + (r"|\{[0-9a-fA-F]{1,6}\}" if char == "u" else "")
        found = re.compile(expression).match(self._pattern, self._at)
        if not found:
            raise self._wrong(f"an unfinished escape \\{char}")
        self._at = found.end()
        code = int(found[0].strip("{}"), 16)
        if code > LAST_CODE or 0xD800 <= code <= 0xDFFF:
            raise self._unsupported(f"the surrogate or impossible character \\{char}{found[0]}", begin)
        return code

    def _set(self) -> Ranges:
        begin = self._at - 1
        negated = self._peek() == "^"
        self._at += negated
        ranges: list[tuple[int, int]] = []
        first = not self._ecma  # a ] that stands first is one of the set, in Python
        while first or self._peek() != "]":
            first = False
            if not self._ecma and self._pattern[self._at : self._at + 2] in ("[:", "&&", "--", "||", "~~"):
                raise self._unsupported(f"the set operation {self._pattern[self._at : self._at + 2]}")
            self._budget.spend(1, self._name)
            members, low = self._member(negated)
            if self._peek() == "-" and self._pattern[self._at + 1 : self._at + 2] not in ("]", ""):
                self._at += 1
                others, high = self._member(negated)
                if self._ecma and (low is None or high is None):  # [\\w-.]: the three of them
                    ranges += [*others, (45, 45)]
                elif low is None or high is None or high < low:
                    raise self._wrong("an impossible range of characters")
                else:
                    members = ((low, high),)
            ranges += members
        self._at += 1
        found = complement(joined(ranges)) if negated else joined(ranges)
        if not found:
            raise self._unsupported("a set of characters that no character is in", begin)
        return found

    def _member(self, negated: bool) -> tuple[Ranges, int | None]:
        """One entry of a set, and its code if it is a single character."""
        char = self._take()
        if char != "\\":
            return codes(char), ord(char)
        kept, taken = self._escape(in_set=True)
        ranges = taken if negated else kept
        single = len(ranges) == 1 and ranges[0][0] == ranges[0][1]
        return ranges, ranges[0][0] if single else None
