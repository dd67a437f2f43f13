"""Rules as xgrammar is given them: the same language, and masks that are what is accepted."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rootlet.grammar.constraint import Constraint
from rootlet.grammar.ebnf import parse_ebnf
from rootlet.grammar.notation import as_ebnf
from rootlet.grammar.xgrammar_backend import XGrammarBackend
from rootlet.grammar.xgrammar_rules import with_counters

from .walks import END, VOCABULARY, allowed

SETS = {"ascii": "[a-z]", "any": '[^\\x00-\\x1f"\\\\]'}


@pytest.fixture(scope="module")
def xgrammar_compiler():
    return XGrammarBackend(lambda: VOCABULARY)


def ends_after(matcher, text: str) -> bool:
    """Whether it is a whole output."""
    return all(map(matcher.accept, text.encode())) and matcher.accept(END)


@settings(max_examples=60, deadline=None)
@given(
    least=st.integers(0, 95),
    extra=st.none() | st.integers(0, 95),
    length=st.integers(0, 200),
    rest=st.sampled_from(["", "!", "!!"]),
)
@example(least=0, extra=40, length=41, rest="")
@example(least=60, extra=0, length=60, rest="!")
@example(least=60, extra=None, length=59, rest="!")
def test_rules_count_as_repetitions_do(least, extra, length, rest):
    import xgrammar

    most = None if extra is None else least + extra
    bounds = f"{{{least},{'' if most is None else most}}}"
    rules = with_counters(parse_ebnf(f'root ::= "<" [a-é]{bounds} "{rest}" "{rest}"'), longest=40, block=20)
    matcher = xgrammar.GrammarMatcher(
        xgrammar.GrammarCompiler(xgrammar.TokenizerInfo([b"-", b"#"], stop_token_ids=[1])).compile_grammar(
            as_ebnf(rules)
        ),
        terminate_without_stop_token=False,
    )
    near = {length, least - 1, least, least + 1, *(() if most is None else (most, most + 1))}
    for count in sorted(near - {-1}):
        whole = matcher.accept_string("<" + "aé"[count % 2] * count + rest * 2) and matcher.is_completed()
        assert whole == (count >= least and (most is None or count <= most)), (bounds, count)
        matcher.reset()


@pytest.mark.parametrize("bounds", ["{0,300}", "{129,}", "{140,150}", "{30}", "{1030,1100}"])
@pytest.mark.parametrize("chars", SETS.values(), ids=SETS)
def test_masks_are_what_is_accepted(xgrammar_compiler, chars, bounds):
    text = f'root ::= "<" {chars}{bounds} ">"'
    matcher = xgrammar_compiler.compile(Constraint("ebnf", text)).matcher()
    assert matcher.accept(ord("<"))
    for _ in range(12):
        tokens = allowed(matcher)
        for token in range(len(VOCABULARY.tokens)):
            accepted = matcher.accept(token)
            assert accepted == (token in tokens), VOCABULARY.tokens[token]
            matcher.rollback(accepted)
        for _ in range(13):
            assert matcher.accept(ord("a")) or ord("a") not in allowed(matcher)


def test_names_of_rules_stay_apart(xgrammar_compiler):
    text = 'root ::= count_0_0 [a-z]{0,20} count\ncount_0_0 ::= "<"\ncount ::= ">"'
    grammar = xgrammar_compiler.compile(Constraint("ebnf", text))
    assert ends_after(grammar.matcher(), "<" + "a" * 20 + ">")
    assert not ends_after(grammar.matcher(), "<" + "a" * 21 + ">")
