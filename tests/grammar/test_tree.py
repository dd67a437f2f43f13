"""Trees: what is told apart, and what is put together."""

from __future__ import annotations

import itertools
import json

import pytest

from rootlet.grammar.constraint import Constraint
from rootlet.grammar.llguidance_backend import LlguidanceBackend
from rootlet.grammar.tree import Choice, Every, Lexeme, Not, Repeat, Sequence, choice, literal, optional
from rootlet.grammar.xgrammar_backend import XGrammarBackend

from .walks import VOCABULARY, takes

BACKENDS = [XGrammarBackend(lambda: VOCABULARY), LlguidanceBackend(lambda: VOCABULARY)]


def test_nodes_of_the_same_parts_but_other_kinds_are_others():
    both = literal("ab").items
    kinds = (
        Sequence(both),
        Choice(both),
        Every(both),
        Not(both[0]),
        optional(both[0]),
        Lexeme(both[0], False, True),
    )
    for one, other in itertools.permutations(kinds, 2):
        assert one != other
        assert choice(one, other) == Choice((one, other))
    assert Repeat(Choice(both), 2, 2) != Repeat(Sequence(both), 2, 2)
    assert choice(Choice(both), Choice(both)) == Choice(both)


@pytest.mark.parametrize("backend", BACKENDS, ids=["xgrammar", "llguidance"])
def test_two_patterns_that_differ_in_a_kind_of_node_are_told_apart(backend):
    twice = {
        "one": {"type": "string", "pattern": "^(a|b){2}$"},
        "two": {"type": "string", "pattern": "^(ab){2}$"},
    }
    schema = {
        "type": "object",
        "properties": twice,
        "required": ["one", "two"],
        "additionalProperties": False,
    }
    grammar = backend.compile(Constraint("json_schema", json.dumps(schema)))
    assert takes(grammar, '{"one": "ba", "two": "abab"}')
    assert not takes(grammar, '{"one": "ba", "two": "ba"}')
    assert not takes(grammar, '{"one": "abab", "two": "abab"}')


@pytest.mark.parametrize("backend", BACKENDS, ids=["xgrammar", "llguidance"])
def test_a_choice_in_a_choice_beside_a_sequence_of_the_same_is_kept(backend):
    grammar = backend.compile(Constraint("ebnf", 'root ::= "ab" | ("a" | "b")'))
    assert [text for text in ("ab", "a", "b", "ba", "") if takes(grammar, text)] == ["ab", "a", "b"]
