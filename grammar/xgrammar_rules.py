"""Rules as xgrammar needs them, in the same language: what it gets wrong or slowly is said in another way.

**Its root is used by no rule.** Where one does, masks lack tokens which go on behind the inner root (0.2.8).

**Long repetitions of a character are rules that count.** xgrammar reads ``[a-z]{0,300}`` itself, but then its
masks allow tokens that do not belong (0.2.8, bounds above 128 of sets with characters of several bytes), and
within smaller bounds they take a hundred times as long as those of

    r0 ::= rest | [a-z] r1        r1 ::= rest | [a-z] r2        ...        r300 ::= rest

What follows the repetition stands at the end of every rule, so that a token which goes on there is decided
when the grammar is compiled. That takes time for each rule, so there are at most a thousand: longer
repetitions are of blocks, at whose ends masks are slow (tens of milliseconds, for one token in a hundred).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeGuard

from .budget import Budget
from .string_counts import MAX_LENGTHS, Length
from .tree import (
    EMPTY,
    SIGN,
    Chars,
    Choice,
    Lexeme,
    Node,
    Repeat,
    Rule,
    Rules,
    Sequence,
    choice,
    literal,
    references,
    renamed,
    sequence,
)

_SHORT = 16  # left as they are
_COUNTED = 24  # characters: up to here a string of JSON is an automaton
_QUOTE = Chars(((34, 34),))


def with_root_apart(rules: Rules, budget: Budget | None = None) -> Rules:
    """The same language with a root that no rule uses."""
    budget = budget or Budget()
    if not any("root" in references(node, budget) for node in rules.values()):
        return rules
    top = "top"
    while top in rules:
        top += "_"
    names = {name: name for name in rules} | {"root": top}
    return {"root": Rule(top)} | {names[name]: renamed(node, names) for name, node in rules.items()}


def with_any_length(rules: Rules, lengths: dict[str, Length], budget: Budget) -> Rules:
    """Rules of JSON documents in which strings with a length have any, for :class:`StringCounts` to see to.

    ``lengths`` is filled with those by the names they have behind the sign. Where there are more than have a
    name the rest are left as they are.
    """
    names: dict[Length, str] = {}

    def free(node: Node) -> Node:
        budget.spend(1, "what it describes")
        if isinstance(node, Lexeme):
            return _of_any_length(node, names) or node
        if isinstance(node, Sequence):
            return Sequence(tuple(map(free, node.items)))
        if isinstance(node, Choice):
            return Choice(tuple(map(free, node.options)))
        return replace(node, item=free(node.item)) if isinstance(node, Repeat) else node

    found = {name: free(node) for name, node in rules.items()}
    lengths |= {name: length for length, name in names.items()}
    return found


def _of_any_length(node: Lexeme, names: dict[Length, str]) -> Lexeme | None:
    """A string for a counted one, or its quote and the sign of its length; None for other words."""
    items = node.item.items if isinstance(node.item, Sequence) else ()
    if len(items) != 3 or not (items[0] == items[2] == _QUOTE and isinstance(items[1], Repeat)):
        return None
    text = items[1]
    length = Length(text.least, text.most)
    if max(text.least, text.most or 0) <= _COUNTED or (length not in names and len(names) == MAX_LENGTHS):
        return None
    name = names.setdefault(length, chr(ord("0") + len(names)))
    anything = Sequence((_QUOTE, Repeat(text.item, 0, None), _QUOTE))
    return Lexeme(Choice((anything, sequence(_QUOTE, literal(SIGN + name)))))


def with_counters(
    rules: Rules, budget: Budget | None = None, *, longest: int = 1024, block: int = 512
) -> Rules:
    """The same language with rules in place of long repetitions of a character.

    Above ``longest`` (characters) they are counted in blocks.
    """
    return _Counting(rules, budget or Budget(), longest, block).rules


class _Counting:
    def __init__(self, rules: Rules, budget: Budget, longest: int, block: int) -> None:
        self._budget = budget
        self.rules = dict(rules)
        self._longest = longest
        self._block = block
        self._written: dict[tuple[Repeat, Node], Rule] = {}
        self._prefix = "count"
        while any(name.startswith(self._prefix) for name in rules):
            self._prefix += "_"
        for name, node in rules.items():
            self.rules[name] = self._rewrite(node)

    def _rewrite(self, node: Node) -> Node:
        self._budget.spend(1, "what it describes")
        if _is_long(node):
            return self._counted(node, EMPTY)
        if isinstance(node, Repeat):
            return replace(node, item=self._rewrite(node.item))
        if isinstance(node, Sequence):
            self._budget.spend(len(node.items), "what it describes")
            if all(isinstance(item, Chars) for item in node.items):
                return node  # a word, as most are
            for at, item in enumerate(node.items):
                if _is_long(item):
                    rest = self._rewrite(Sequence(node.items[at + 1 :]))
                    return sequence(*map(self._rewrite, node.items[:at]), self._counted(item, rest))
            return Sequence(tuple(map(self._rewrite, node.items)))
        if isinstance(node, Choice):
            return Choice(tuple(map(self._rewrite, node.options)))
        if isinstance(node, Lexeme) and not node.in_states:
            return replace(node, item=self._rewrite(node.item))
        return node

    def _counted(self, node: Repeat, rest: Node) -> Node:
        """``node`` and what stands behind it."""
        if max(node.least, node.most or 0) <= self._longest:
            return self._chain(node, rest)
        return sequence(*self._blocks(node), rest)

    def _chain(self, node: Repeat, rest: Node) -> Rule:
        if (node, rest) in self._written:
            return self._written[node, rest]
        last = max(node.least, node.most or 0)
        prefix = f"{self._prefix}_{len(self._written)}"
        self._written[node, rest] = first = Rule(f"{prefix}_0")
        if isinstance(rest, (Sequence, Choice)) and rest != EMPTY:  # once, for it may be long
            self.rules[f"{prefix}_rest"] = rest
            rest = Rule(f"{prefix}_rest")
        for count in range(last + 1):
            self._budget.spend(3, "a repetition", 500)
            self._budget.widen(node.item.ranges if isinstance(node.item, Chars) else ())
            options: list[Node] = [rest] if count >= node.least else []
            if count < last or node.most is None:
                options.append(sequence(node.item, Rule(f"{prefix}_{min(count + 1, last)}")))
            self.rules[f"{prefix}_{count}"] = choice(*options)
        return first

    def _blocks(self, node: Repeat) -> list[Node]:
        """First those that must be, whole blocks and what remains, then those that may be."""
        size = self._block
        block = self._chain(Repeat(node.item, size, size), EMPTY)
        blocks, remainder = divmod(node.least, size)
        rest = self._chain(Repeat(node.item, remainder, remainder), EMPTY)
        must: list[Node] = [Repeat(block, blocks, blocks), rest]
        if node.most is None:
            return [*must, Repeat(node.item, 0, None)]
        blocks, remainder = divmod(node.most - node.least, size)
        may = sequence(Repeat(block, blocks, blocks), self._chain(Repeat(node.item, 0, remainder), EMPTY))
        if blocks:
            part = self._chain(Repeat(node.item, 0, size - 1), EMPTY)
            may = choice(sequence(Repeat(block, 0, blocks - 1), part), may)
        return [*must, may]


def _is_long(node: Node) -> TypeGuard[Repeat]:
    return (
        isinstance(node, Repeat) and isinstance(node.item, Chars) and max(node.least, node.most or 0) > _SHORT
    )
