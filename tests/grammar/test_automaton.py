"""Automata against plain definitions of the same languages."""

from __future__ import annotations

import re

from hypothesis import assume, given
from hypothesis import strategies as st

from rootlet.errors import GrammarError
from rootlet.grammar.automaton import Automaton, determine, lengths
from rootlet.grammar.notation import as_regex
from rootlet.grammar.regex import parse
from rootlet.grammar.tree import Every, Until

LETTERS = st.text("ab<", max_size=10)
MARKERS = st.lists(st.text("ab<", min_size=1, max_size=4), min_size=1, max_size=3, unique=True)


def accepts(automaton: Automaton, text: str) -> bool:
    state = 0
    for char in map(ord, text):
        ways = [
            to for ranges, to in automaton.edges[state] if any(low <= char <= high for low, high in ranges)
        ]
        if not ways:
            return False
        [state] = ways
    return state in automaton.ends


@given(MARKERS, LETTERS, st.data())
def test_text_until_a_marker(markers, text, data):
    assume(not any(a in b for a in markers for b in markers if a != b))
    last = data.draw(st.sampled_from([None, *markers]))
    text += data.draw(st.sampled_from(["", *markers]))
    if last is None:
        meant = not any(marker in text for marker in markers)
    else:
        meant = text.endswith(last) and not any(marker in text[:-1] for marker in markers)
    assert accepts(determine(Until(tuple(markers), last)), text) == meant


ATOMS = st.sampled_from(["a", "b", "[ab]", "[^a]", ".", "(?:ab)", "a|b", ""])
PATTERNS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map("".join),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,2}", "{2,}"])).map("(%s)%s".__mod__),
        st.tuples(inner, inner).map("(?:%s|%s)".__mod__),
    ),
    max_leaves=6,
)


@given(PATTERNS, st.text("ab", max_size=8))
def test_patterns(pattern, text):
    tree = parse(pattern)
    meant = re.fullmatch(pattern, text) is not None
    assert accepts(determine(tree), text) == meant
    assert (re.fullmatch(as_regex(tree), text) is not None) == meant


@given(PATTERNS, PATTERNS, st.text("ab", max_size=8))
def test_every_pattern_at_once(one, other, text):
    meant = re.fullmatch(one, text) is not None and re.fullmatch(other, text) is not None
    try:
        both = determine(Every((parse(one), parse(other))))
    except GrammarError:
        assert not meant
        return
    assert accepts(both, text) == meant
    shortest, longest = lengths(both)
    assert not meant or shortest <= len(text) <= longest
