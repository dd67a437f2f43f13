"""Trees in the notations that backends read: regular expressions, xgrammar's EBNF, llguidance's Lark."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from ..errors import GrammarError
from .automaton import Automaton, determine
from .budget import Budget
from .string_counts import Length
from .tree import (
    EMPTY,
    SIGN,
    Chars,
    Choice,
    Every,
    Except,
    Lexeme,
    Node,
    Not,
    Ranges,
    Repeat,
    Rule,
    Rules,
    Sequence,
    Until,
    Words,
    common,
    complement,
    joined,
    literal,
    parts,
)
from .xgrammar_rules import with_any_length, with_counters, with_root_apart

_BOUNDS = {(0, None): "*", (1, None): "+", (0, 1): "?"}
_MAX_PLACES = 50_000  # in a terminal: llguidance may look at each of them for a single mask
_WIDE = 1000  # characters
_SPECIAL = frozenset(r"\^$.|?*+()[]{}-/\"")


def as_regex(node: Node) -> str:
    """A tree without rules as a regular expression."""
    if isinstance(node, Chars):
        return _set(node.ranges)
    if isinstance(node, Sequence):
        return "".join(map(as_regex, node.items))
    if isinstance(node, Choice):
        return f"(?:{'|'.join(map(as_regex, node.options))})"
    if isinstance(node, Repeat):
        item = as_regex(node.item)
        return f"{item if isinstance(node.item, Chars) else f'(?:{item})'}{_bounds(node)}"
    if isinstance(node, Lexeme):
        return as_regex(node.item)
    if isinstance(node, Words):
        return f"(?:{'|'.join(''.join(_char(ord(char)) for char in word) for word in node.words)})"
    raise TypeError(f"a regular expression cannot say {node!r}")


def as_ebnf(rules: Rules, budget: Budget | None = None, lengths: dict[str, Length] | None = None) -> str:
    """Rules as xgrammar reads them, one a line; each lexeme as the states of its automaton.

    With ``lengths``, of documents, those of strings are put there and left out here (``string_counts.py``).
    """
    budget = budget or Budget()
    lexemes: dict[Node, str] = {}
    if lengths is not None:
        rules = with_any_length(rules, lengths, budget)
    rules = with_counters(with_root_apart(rules, budget), budget)
    lines = []
    for name, node in rules.items():
        lines.append(f"{name} ::= {_ebnf(node, lexemes)}\n")
        budget.spend(len(lines[-1]) // 8, "what it describes", len(lines[-1]))
    for lexeme, name in lexemes.items():
        what = budget.place(lexeme) or "a text"
        automaton = determine(lexeme, budget, what)
        written = _states(automaton, name, budget)
        size = sum(map(len, written))
        budget.spend(size // 8, what, size)
        lines += written
    return "".join(lines)


def as_lark(rules: Rules, budget: Budget | None = None, *, open_words: bool) -> str:
    """Rules as llguidance reads them; each lexeme is a terminal, and so is each character outside.

    The lexer takes all that a terminal can get, and then it is settled where that ends. So where anything may
    stand behind a number, ``open_words`` must be False: their characters are terminals then.
    """
    budget = budget or Budget()
    writer = _Lark(rules, open_words)
    lines = []
    for name, node in rules.items():
        lines.append(f"{writer.names[name]}: {writer.write(node)}\n")
        budget.spend(len(lines[-1]) // 8, "what it describes", len(lines[-1]))
    for node, name in writer.terminals.items():
        lines.append(f"{name}: {_terminal(node)}\n")
        what = budget.place(node) or "a text"
        budget.spend(len(lines[-1]) // 8, what, len(lines[-1]))
        if _num_places(node) > _MAX_PLACES:
            raise GrammarError(
                f"{what} has more than {_MAX_PLACES} characters, counts multiplied: repeat less"
            )
    return "".join(lines)


def _num_places(node: Node) -> int:
    """Places of a character in an expression in which counts are written out."""
    if isinstance(node, Chars):
        return 1
    if isinstance(node, Words):
        return max(map(len, node.words), default=0)
    if isinstance(node, Repeat):
        return _num_places(node.item) * max(node.least, node.most or 1, 1)
    return sum(map(_num_places, parts(node)))


def _bounds(node: Repeat) -> str:
    if (node.least, node.most) in _BOUNDS:
        return _BOUNDS[node.least, node.most]
    return f"{{{node.least},{'' if node.most is None else node.most}}}"


def _set(ranges: Ranges) -> str:
    [(low, high), *rest] = ranges
    if low == high and not rest:
        return _char(low)
    return f"[{''.join(_char(a) if a == b else f'{_char(a)}-{_char(b)}' for a, b in ranges)}]"


def _char(code: int) -> str:
    if code < 32 or code == 127:
        return f"\\u{code:04x}"  # of \x xgrammar reads as many digits as follow
    return f"\\{chr(code)}" if chr(code) in _SPECIAL else chr(code)


def _ebnf(node: Node, lexemes: dict[Node, str]) -> str:
    if isinstance(node, Rule):
        return node.name
    if isinstance(node, Lexeme):
        return (
            lexemes.setdefault(node, f"text_{len(lexemes)}") if node.in_states else _ebnf(node.item, lexemes)
        )
    if isinstance(node, Chars):
        return _class(node.ranges)
    if isinstance(node, Choice):
        return f"({' | '.join(_ebnf(option, lexemes) for option in node.options)})"
    if isinstance(node, Repeat):
        item = _ebnf(node.item, lexemes)
        return f'({item} | "")' if (node.least, node.most) == (0, 1) else f"({item}){_bounds(node)}"
    assert isinstance(node, Sequence)  # what else there is stands in lexemes, which are automata
    words, text = [], ""
    flat = itertools.chain(*(_letters(one) for one in node.items))
    for one in (*flat, None):
        if isinstance(one, Chars) and len(one.ranges) == 1 and one.ranges[0][0] == one.ranges[0][1]:
            text += _quoted(one.ranges[0][0])
            continue
        if text:
            words.append(f'"{text}"')
            text = ""
        if one is not None:
            words.append(_ebnf(one, lexemes))
    return f"({' '.join(words)})" if words else '""'


def _letters(node: Node) -> tuple[Node, ...]:
    """A fixed word letter by letter."""
    if isinstance(node, Lexeme) and not node.in_states and isinstance(node.item, Sequence):
        return node.item.items
    return (node,)


def _class(ranges: Ranges) -> str:
    text = _set(ranges)
    return text if text.startswith("[") else f"[{text}]"


def _states(automaton: Automaton, name: str, budget: Budget) -> list[str]:
    """A rule for each state; those with one way in stand where that way is."""
    entries = automaton.entries()

    def rule(state: int) -> str:
        return name if state == 0 else f"{name}_{state}"

    def follow(state: int) -> str:
        """What stands behind an edge into ``state``."""
        words = []
        while (
            state and entries[state] == 1 and state not in automaton.ends and len(automaton.edges[state]) == 1
        ):
            [(ranges, state)] = automaton.edges[state]
            words.append(_class(ranges))
        is_last = state in automaton.ends and not automaton.edges[state]
        return " ".join(words if is_last else [*words, rule(state)])

    def stands_alone(state: int) -> bool:
        chained = entries[state] == 1 and state not in automaton.ends and len(automaton.edges[state]) == 1
        return state == 0 or not (chained or (state in automaton.ends and not automaton.edges[state]))

    parted = _Parted(automaton, name, follow)
    lines = []
    for state in filter(stands_alone, range(len(automaton.edges))):
        options = ['""'] if state in automaton.ends else []
        for ranges, to in automaton.edges[state]:
            shared = parted.option(state, ranges, to)
            if shared is None:
                budget.widen(ranges)
            options.append(shared or f"{_class(ranges)} {follow(to)}")
        lines.append(f"{rule(state)} ::= {' | '.join(options)}\n")
    return lines + [f"{rule_name} ::= {text}\n" for rule_name, text in parted.rules.items()]


class _Parted:
    """Edges of almost any character, as a rule for each character that some state makes a difference of.

    xgrammar looks at every token that may begin in a state. Where many states lead to the same one, but for a
    few characters each (a string that may be any name but those declared), that is the whole vocabulary for
    each of them; like this it is once, and a few tokens for each. An edge of a state into itself stays one:
    nearly all tokens lead along it, and each of their characters would meet all the rules.
    """

    _LEAST = 8  # states

    def __init__(self, automaton: Automaton, name: str, follow: Callable[[int], str]) -> None:
        self.rules: dict[str, str] = {}
        self._name = name
        self._follow = follow
        self._alike: dict[tuple[int, Ranges], str] = {}
        into: dict[int, list[Ranges]] = {}
        for state, edges in enumerate(automaton.edges):
            for ranges, to in edges:
                if to != state and _is_wide(ranges):
                    into.setdefault(to, []).append(ranges)
        self._all = {
            to: joined(itertools.chain(*found)) for to, found in into.items() if len(found) >= self._LEAST
        }
        self._special = {
            to: joined(itertools.chain(*(common(self._all[to], complement(ranges)) for ranges in into[to])))
            for to in self._all
        }

    def option(self, state: int, ranges: Ranges, to: int) -> str | None:
        """What stands for an edge; None if it is written as it is."""
        if to == state or to not in self._all or not _is_wide(ranges):
            return None
        if (to, ranges) not in self._alike:
            name = self._alike[to, ranges] = f"{self._name}_to_{to}_{len(self._alike)}"
            special = [code for low, high in self._special[to] for code in range(low, high + 1)]
            kept = [code for code in special if common(ranges, ((code, code),))]
            options = [self._single(common(ranges, complement(self._special[to])), to, "others")]
            options += [self._single(((code, code),), to, str(code)) for code in kept]
            self.rules[name] = " | ".join(options)
        return self._alike[to, ranges]

    def _single(self, ranges: Ranges, to: int, which: str) -> str:
        name = f"{self._name}_by_{to}_{which}"
        self.rules[name] = f"{_class(ranges)} {self._follow(to)}"
        return name


def _is_wide(ranges: Ranges) -> bool:
    return sum(high - low for low, high in ranges) > _WIDE


def _quoted(code: int) -> str:
    if code < 32 or code == 127:
        return _char(code)
    return f"\\{chr(code)}" if chr(code) in '"\\' else chr(code)


def _terminal(node: Node) -> str:
    """A terminal of Lark; beyond expressions llguidance knows & (both) and ~ (not)."""
    if isinstance(node, Every):
        return " & ".join(map(_terminal, node.items))
    if isinstance(node, Except):
        return f"{_terminal(node.item)} & ~/{as_regex(Words(node.words))}/"
    if isinstance(node, Not):
        return f"~/{as_regex(node.item)}/"
    if not isinstance(node, Until):
        return f"/{as_regex(node)}/"
    anything = rf"[^{_char(ord(SIGN))}]*"
    marker = as_regex(Choice(tuple(map(literal, node.markers))))
    if node.last is None:
        return f"/{anything}/ & ~/{anything}{marker}{anything}/"
    return f"/{anything}{as_regex(literal(node.last))}/ & ~/{anything}{marker}{anything}(?s:.)/"


class _Lark:
    def __init__(self, rules: Rules, open_words: bool) -> None:
        self.terminals: dict[Node, str] = {}
        # names of rules are in small letters; the numbers keep them apart
        self.names = {name: "start" if name == "root" else f"r{i}" for i, name in enumerate(rules)}
        self._open_words = open_words

    def write(self, node: Node) -> str:
        if isinstance(node, Rule):
            return self.names[node.name]
        if isinstance(node, Chars):
            return self._terminal(node)
        if isinstance(node, Lexeme):
            is_word = self._open_words or not node.is_open
            return self._terminal(node.item) if is_word and node.item != EMPTY else self.write(node.item)
        if isinstance(node, Choice):
            return f"({' | '.join(map(self.write, node.options))})"
        if isinstance(node, Repeat):
            return f"({self.write(node.item)}){_bounds(node)}"
        assert isinstance(node, Sequence)  # what else there is stands in lexemes, which are terminals
        return f"({' '.join(map(self.write, node.items))})" if node != EMPTY else '""'

    def _terminal(self, node: Node) -> str:
        return self.terminals.setdefault(node, f"T{len(self.terminals)}")
