"""JSON strings as trees: any, by length, pattern or format. Every character has one way to be written."""

from __future__ import annotations

from collections.abc import Iterable

from ...errors import GrammarError
from ..automaton import determine, lengths
from ..regex import parse
from ..tree import (
    EMPTY,
    Chars,
    Choice,
    Every,
    Lexeme,
    Node,
    Ranges,
    Repeat,
    Rule,
    Sequence,
    choice,
    codes,
    common,
    complement,
    joined,
    literal,
    sequence,
)

_PLAIN = joined([(0x20, 0x21), (0x23, 0x5B), (0x5D, 0x7E), (0x80, 0x10FFFF)])  # stand for themselves
_ESCAPES = dict(zip('"\\\b\f\n\r\t', '"\\bfnrt'))
_ALL = complement(())
_MAX_LENGTH = 10_000  # characters
_MAX_STATES = 256  # characters: up to this length strings are automata

_YEAR, _MONTH_DAY = (
    r"[1-9]\d{3}",
    (
        r"(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)|02-(?:0[1-9]|1\d|2[0-8]))"
    ),
)
_TIME = r"(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,6})?(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)"
_BYTE = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"


def _label(most: int) -> str:
    """A part of a host's name."""
    return f"[a-z0-9](?:[a-z0-9-]{{0,{most - 2}}}[a-z0-9])?" if most > 1 else "[a-z0-9]"


_LABEL = _label(32)
_HOST = rf"{_LABEL}(?:\.{_LABEL}){{0,3}}"

FORMATS = {
    "date": f"{_YEAR}-{_MONTH_DAY}",
    "time": _TIME,
    "date-time": f"{_YEAR}-{_MONTH_DAY}T{_TIME}",
    "duration": r"P(?:\d{1,4}[WD]|T(?:\d{1,4}H(?:\d{1,4}M(?:\d{1,4}S)?)?|\d{1,4}M|\d{1,4}S))",
    "email": rf"[a-z0-9]+(?:[._+-][a-z0-9]+){{0,3}}@{_LABEL}(?:\.{_LABEL}){{1,3}}",
    "hostname": _HOST,
    "ipv4": rf"{_BYTE}(?:\.{_BYTE}){{3}}",
    "ipv6": r"[0-9a-f]{1,4}(?::[0-9a-f]{1,4}){7}",
    "uri": rf"https?://{_HOST}(?::[1-9]\d{{0,3}})?(?:/[A-Za-z0-9._~-]*){{0,10}}",
    "base64": r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?",
    "uuid": r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
}
"""The formats that are enforced: common forms of each, not every one that its standard allows."""

_ANYTHING = ("binary", "password", "path")  # formats that say what a text is for, not what stands in it


def _within(form: str, most: int) -> str:
    """A format, its texts about so long at most: the product with a length may have too many states."""
    if form == "hostname":
        label = _label(min(32, max(1, (most - 2) // 3)))
        return rf"{label}(?:\.{label}){{0,2}}"
    if form == "email":
        size = min(32, max(1, (most - 4) // 5))
        name, label = f"[a-z0-9]{{1,{size}}}", _label(size)
        return rf"{name}(?:[._+-]{name})?@{label}(?:\.{label}){{1,2}}"
    if form == "uri":
        size = min(32, max(1, (most - 10) // 6))
        label, rest = _label(size), most - len("https://") - 3 * size - 2
        path = f"(?:/[A-Za-z0-9._~-]{{0,{min(64, rest // 4 - 1)}}}){{0,4}}" if rest >= 4 else ""
        return rf"https?://{label}(?:\.{label}){{1,2}}{path}"
    return FORMATS[form]


def string(text: Node) -> Node:
    """A JSON string of these texts."""
    if (
        isinstance(text, Repeat)
        and text.item == Chars(_ALL)
        and max(text.least, text.most or 0) > _MAX_STATES
    ):
        # As an automaton it would take seconds to compile. Counted instead, its characters are to be of one
        # kind: those that need no escape.
        plain = text._replace(item=Chars(_PLAIN))
        return Lexeme(sequence(literal('"'), plain, literal('"')), in_states=False)
    if isinstance(text, Every):
        return Lexeme(Every(tuple(_quoted(item) for item in text.items)))
    return Lexeme(_quoted(text))


def texts(
    least: int = 0, most: int | None = None, pattern: str | None = None, form: str | None = None
) -> Node:
    """The texts of a length, a pattern and a format.

    A pattern alone stands for whole texts, which is less than the standard allows: it may be found anywhere
    in them. Together with others, where whole texts may be none, it is found anywhere.

    Raises GrammarError, without the place in the schema, for what cannot be enforced.
    """
    if max(least, most or 0) > _MAX_LENGTH:
        raise GrammarError(f"a length above {_MAX_LENGTH} is not supported")
    if most is not None and least > most:
        raise GrammarError(f"minLength {least} is above maxLength {most}")
    is_bounded = least > 0 or most is not None
    given: list[Node] = []
    if form is not None and form not in _ANYTHING:
        if form not in FORMATS:
            known = ", ".join(sorted((*FORMATS, *_ANYTHING)))
            raise GrammarError(f"format {form!r} is not supported (supported: {known})")
        given.append(parse(FORMATS[form] if most is None else _within(form, most)))
    if pattern is not None:
        whole = parse(pattern)
        given.append(_anywhere(pattern, whole) if given or is_bounded else whole)
    if is_bounded and given:
        shortest, longest = lengths(determine(_every(given)))
        is_bounded = shortest < least or (most is not None and longest > most)
    if is_bounded or not given:
        given.append(Repeat(Chars(_ALL), least, most))
    found = _every(given)
    if isinstance(found, Every):
        determine(found)  # raises if there is no such text
    return found


def _every(nodes: list[Node]) -> Node:
    return nodes[0] if len(nodes) == 1 else Every(tuple(nodes))


def _anywhere(pattern: str, found: Node) -> Node:
    """Texts in which a pattern is ``found``: with anything on the sides where it has no anchors."""
    anything = Repeat(Chars(_ALL), 0, None)
    before = [] if "^" in pattern or r"\A" in pattern else [anything]
    after = [] if "$" in pattern or r"\Z" in pattern else [anything]
    return sequence(*before, found, *after)


def texts_except(names: Iterable[str]) -> Node:
    """Every text but these."""
    by_first: dict[str, list[str]] = {}
    may_end = True
    for name in names:
        if name:
            by_first.setdefault(name[0], []).append(name[1:])
        else:
            may_end = False
    others = Chars(complement(codes("".join(by_first))))
    options = [sequence(others, Repeat(Chars(_ALL), 0, None))]
    options += [sequence(literal(first), texts_except(rests)) for first, rests in by_first.items()]
    return choice(*([EMPTY] if may_end else []), *options)


def _quoted(text: Node) -> Node:
    return sequence(literal('"'), _escaped(text), literal('"'))


def _escaped(node: Node) -> Node:
    """Texts as they stand between the quotes."""
    if isinstance(node, Chars):
        return _escaped_chars(node.ranges)
    if isinstance(node, Sequence):
        return Sequence(tuple(map(_escaped, node.items)))
    if isinstance(node, Choice):
        return Choice(tuple(map(_escaped, node.options)))
    if isinstance(node, (Rule, Lexeme)):
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
