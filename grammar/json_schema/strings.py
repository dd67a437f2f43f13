"""JSON strings as trees: any, by length, pattern or format. Every character has one way to be written."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from ...errors import GrammarError
from .. import tree
from ..automaton import NoText, determine, lengths
from ..budget import Budget, shortened
from ..patterns import ANYTHING, search, within_length
from ..regex import parse
from ..tree import (
    Chars,
    Choice,
    Every,
    Except,
    Lexeme,
    Node,
    Not,
    Ranges,
    Repeat,
    choice,
    codes,
    common,
    complement,
    joined,
    literal,
    sequence,
)
from .formats import FORMATS, WIDEST, within
from .tokens import text_of

_PLAIN = joined([(0x20, 0x21), (0x23, 0x5B), (0x5D, 0x7E), (0x80, 0x10FFFF)])  # stand for themselves
_ESCAPES = dict(zip('"\\\b\f\n\r\t', '"\\bfnrt'))
_ALL = complement(())
_MAX_LENGTH = 10_000  # characters
_MAX_PRODUCT = 10_000  # states of a pattern times its length: above, what stands beside it fills the length
_MAX_STATES = 256  # characters: up to this length strings are automata


def string(text: Node) -> Node:
    """A JSON string of these texts."""
    if (
        isinstance(text, Repeat)
        and text.item == Chars(_ALL)
        and max(text.least, text.most or 0) > _MAX_STATES
    ):
        # As an automaton it would take seconds to compile. Counted instead, its characters are to be of one
        # kind: those that need no escape.
        plain = replace(text, item=Chars(_PLAIN))
        return Lexeme(sequence(literal('"'), plain, literal('"')), in_states=False)
    return Lexeme(_quoted(text))


def texts(
    least: int = 0,
    most: int | None = None,
    *,
    patterns: Sequence[str] = (),
    formats: Sequence[str] = (),
    no_patterns: Sequence[str] = (),
    no_formats: Sequence[str] = (),
    excluded: Collection[str] = (),
    budget: Budget | None = None,
) -> Node:
    """The texts of a length in which patterns are found, of formats, without others, less the ``excluded``.

    Raises GrammarError, without the place in the schema, for what cannot be enforced, and NoText.
    """
    if max(least, most or 0) > _MAX_LENGTH:
        raise GrammarError(f"a length above {_MAX_LENGTH} is not supported")
    if most is not None and least > most:
        raise NoText
    budget = budget or Budget()
    is_bounded = least > 0 or most is not None
    what = (
        f"a string of {shortened(' and '.join([*patterns, *formats]))}" if patterns or formats else "a string"
    )
    forms = [name for name in formats if name in FORMATS]
    given = [parse(FORMATS[form] if most is None else within(form, most)) for form in forms]
    given += [search(pattern, budget) for pattern in patterns]
    if is_bounded and given:
        automaton = determine(_every(given), budget, what)
        shortest, longest = lengths(automaton)
        is_bounded = shortest < least or (most is not None and longest > most)
        if is_bounded and most is not None and len(automaton.edges) * most > _MAX_PRODUCT and len(given) == 1:
            fitted = within_length(given[0], most)
            if fitted is not None:
                given, most = [fitted], None
                is_bounded = shortest < least
    if is_bounded or not given:
        given.append(Repeat(Chars(_ALL), least, most))
    if excluded:
        given.append(texts_except(excluded))
    given += [Not(search(pattern, budget, widest=True)) for pattern in no_patterns]
    given += [Not(wide(form, budget)) for form in no_formats if form in FORMATS]
    given = list(dict.fromkeys(item for item in given if item != ANYTHING)) or [ANYTHING]
    if isinstance(given[0], Not):
        given.insert(0, ANYTHING)
    found = _every(given)
    if isinstance(found, Every) or found == Chars(()):
        determine(found, budget, what)  # raises if there is no such text
    return found


def wide(form: str, budget: Budget | None = None) -> Node:
    """All texts that anybody may take for this format."""
    return search(f"^{WIDEST[form]}$", budget, widest=True) if form in WIDEST else ANYTHING


def _every(nodes: Sequence[Node]) -> Node:
    flat: list[Node] = []
    for node in nodes:
        flat += node.items if isinstance(node, Every) else (node,)
    return flat[0] if len(flat) == 1 else Every(tuple(flat))


def texts_except(names: Iterable[str]) -> Node:
    """Every text but these."""
    return Except(Repeat(Chars(_ALL), 0, None), tuple(names))


def _quoted(text: Node) -> Node:
    if isinstance(text, Every):
        return Every(tuple(map(_quoted, text.items)))
    if isinstance(text, Not):
        return Not(_quoted(text.item))
    if isinstance(text, Except):
        return Except(_quoted(text.item), tuple(map(text_of, text.words)))
    return sequence(literal('"'), _escaped(text), literal('"'))


def _escaped(node: Node) -> Node:
    """Texts as they stand between the quotes."""
    if isinstance(node, Chars):
        return _escaped_chars(node.ranges)
    if isinstance(node, tree.Sequence):
        return tree.Sequence(tuple(map(_escaped, node.items)))
    if isinstance(node, Choice):
        return Choice(tuple(map(_escaped, node.options)))
    if not isinstance(node, Repeat):
        raise TypeError("texts refer to no rules")
    return Repeat(_escaped(node.item), node.least, node.most)


def _escaped_chars(ranges: Ranges) -> Node:
    plain = common(ranges, _PLAIN)
    options: list[Node] = [Chars(plain)] if plain else []
    short = [char for char in _ESCAPES if common(ranges, codes(char))]
    if short:
        options.append(sequence(literal("\\"), Chars(codes("".join(_ESCAPES[char] for char in short)))))
    for low, high in common(ranges, complement(_PLAIN)):
        # consecutive control characters differ in their last digit only
        for code in range(low, high + 1):
            if chr(code) not in _ESCAPES:
                options.append(literal(f"\\u{code:04x}"))
    return choice(*options)
