"""How many parts of a grammar may be read at one place: each of them is looked at for every mask.

Backends follow all readings of a text at once. A token that may begin in a thousand parts is tried a thousand
times, and neither library can be interrupted; so such grammars are refused.
"""

from __future__ import annotations

from typing import NamedTuple

from ..errors import GrammarError
from .budget import Budget
from .tree import Chars, Choice, Lexeme, Node, Ranges, Repeat, Rule, Rules, Sequence, common, joined, parts

_MOST = 16.0  # sets of all characters
_MOST_COPIES = 32  # of a part that may go on with what the next one begins with
_FIRST, _LAST = 32, 126  # printable ASCII


def check_width(rules: Rules, budget: Budget) -> None:
    """Raise GrammarError if too much may begin at one place of rules, none of which begins with itself."""
    _Widths(rules, budget).check()


class _Begin(NamedTuple):
    """What a node may begin with: the share of ASCII, added up part by part, and the characters."""

    width: float
    chars: Ranges
    may_be_empty: bool


class _Widths:
    def __init__(self, rules: Rules, budget: Budget) -> None:
        self._rules = rules
        self._budget = budget
        self._begins: dict[str, _Begin] = {}
        self._further: dict[str, Ranges] = {}
        self._name = "root"

    def check(self) -> None:
        """Look at every place."""
        for name, node in self._rules.items():
            self._name = name
            self._check(node)

    def _check(self, node: Node) -> None:
        self._begin(node)
        if isinstance(node, Lexeme):
            return
        for part in parts(node):
            self._check(part)
        if isinstance(node, Sequence):
            self._behind(node)
        if (
            isinstance(node, Repeat)
            and max(node.least, node.most or 0) > _MOST_COPIES
            and common(self._begin(node.item).chars, self._more(node.item))
        ):
            raise GrammarError(
                f"rule {self._name!r} repeats, more than {_MOST_COPIES} times, what may go on as it begins:"
                " there would be too many ways to cut a text. Put something between the parts."
            )

    def _begin(self, node: Node) -> _Begin:
        self._budget.spend(2, f"rule {self._name!r}")
        if isinstance(node, Rule):
            if node.name not in self._begins:
                self._begins[node.name] = self._begin(self._rules[node.name])
            return self._begins[node.name]
        if isinstance(node, Chars):
            inside = (min(high, _LAST) - max(low, _FIRST) + 1 for low, high in node.ranges)
            count = sum(max(0, size) for size in inside)
            return _Begin(max(count, 1) / (_LAST - _FIRST + 1), node.ranges, False)
        if isinstance(node, Lexeme):  # one reading; not looked into
            return _Begin(1 / (_LAST - _FIRST + 1), (), False)
        if isinstance(node, Choice):
            return self._sum([self._begin(option) for option in node.options])
        if isinstance(node, Repeat):
            begin = self._begin(node.item)
            copies = max(node.most or 1, 1) if begin.may_be_empty else 1
            return self._checked(
                _Begin(begin.width * copies, begin.chars, begin.may_be_empty or node.least == 0)
            )
        assert isinstance(node, Sequence)
        found = []
        for item in node.items:
            found.append(self._begin(item))
            if not found[-1].may_be_empty:
                break
        return self._sum(found)._replace(may_be_empty=all(begin.may_be_empty for begin in found))

    def _behind(self, node: Sequence) -> None:
        """Each place between the items."""
        width = 0.0
        for item in reversed(node.items):
            begin = self._begin(item)
            width = begin.width + (width if begin.may_be_empty else 0.0)
            self._checked(begin._replace(width=width))

    def _more(self, node: Node) -> Ranges:
        """With what a text of a node may go on and still be one."""
        self._budget.spend(2, f"rule {self._name!r}")
        if isinstance(node, Rule):
            if node.name not in self._further:
                self._further[node.name] = ()  # for a rule that ends with itself
                self._further[node.name] = self._more(self._rules[node.name])
            return self._further[node.name]
        if isinstance(node, Choice):
            return joined(part for option in node.options for part in self._more(option))
        if isinstance(node, Repeat):
            again = () if node.most in (0, 1) else self._begin(node.item).chars
            return joined([*self._more(node.item), *again])
        found: list[tuple[int, int]] = []
        if isinstance(node, Sequence):
            for item in reversed(node.items):
                found += self._more(item)
                begin = self._begin(item)
                if not begin.may_be_empty:
                    break
                found += begin.chars
        return joined(found)

    def _sum(self, found: list[_Begin]) -> _Begin:
        return self._checked(
            _Begin(
                sum(begin.width for begin in found),
                joined(part for begin in found for part in begin.chars),
                any(begin.may_be_empty for begin in found),
            )
        )

    def _checked(self, begin: _Begin) -> _Begin:
        if begin.width > _MOST:
            raise GrammarError(
                f"rule {self._name!r} has a place where so much may begin that a mask would take too long:"
                " let parts that follow each other be told apart by their first characters."
            )
        return begin
