"""Lengths of strings, which xgrammar is not asked to count, against llguidance, which counts them."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rootlet.grammar.constraint import Constraint
from rootlet.grammar.llguidance_backend import LlguidanceBackend
from rootlet.grammar.string_counts import TokenCounts, step
from rootlet.grammar.xgrammar_backend import XGrammarBackend

from .walks import VOCABULARY, allowed, choose

BACKENDS = [XGrammarBackend(lambda: VOCABULARY), LlguidanceBackend(lambda: VOCABULARY)]
STRINGS = [{"minLength": 0, "maxLength": 30}, {"minLength": 28, "maxLength": 31}, {"minLength": 40}]
PIECES = ("a", "é", "\U0001f600", '\\"', "\\\\", "\\n", "\\u0001", "ab", "ba")


def compiled(schema: dict) -> list:
    return [backend.compile(Constraint("json_schema", json.dumps(schema))) for backend in BACKENDS]


def same_masks(matchers: list) -> list[int]:
    """What may follow; of what must follow llguidance allows the cut of the tokenizer only."""
    ours, theirs = map(allowed, matchers)
    if len({VOCABULARY.tokens[token][:1] for token in ours}) == 1:
        assert set(theirs) <= set(ours)
    else:
        assert ours == theirs
    return theirs


@pytest.mark.parametrize("bounds", STRINGS, ids=json.dumps)
@pytest.mark.parametrize("seed", range(4))
def test_masks_and_tokens_keep_the_length_to_the_character(bounds, seed):
    of = {"type": "string", **bounds}
    grammars = compiled({"type": "array", "prefixItems": [of, {"type": "string"}, of], "minItems": 3})
    draw = random.Random(seed)
    matchers = [grammar.matcher() for grammar in grammars]
    least, most = bounds["minLength"], bounds.get("maxLength", 60)
    lengths = [draw.choice((least, least + 1, most - 1, most)) for _ in range(3)]
    text = "["
    for byte in b"[":
        assert all(matcher.accept(byte) for matcher in matchers)
    for at, length in enumerate(lengths):
        content = ""
        while len(json.loads(f'"{content}"')) < length:
            content += draw.choice(PIECES if len(json.loads(f'"{content}"')) < length - 1 else PIECES[:7])
        for byte in (f'"{content}"' + (", " if at < 2 else "]")).encode():
            same_masks(matchers)
            for matcher in matchers:
                assert matcher.accept(byte), (text, byte)
            text += chr(byte)
    assert all(matcher.accept(256) for matcher in matchers)


def test_what_is_taken_is_what_masks_allow_and_can_be_taken_back():
    of = {"type": "string", **STRINGS[1]}
    grammar = compiled({"type": "object", "properties": {"a": of}, "required": ["a"]})[0]
    matcher, draw = grammar.matcher(), random.Random(5)
    history = []
    while not matcher.is_terminated:
        tokens = allowed(matcher)
        for token in range(len(VOCABULARY.tokens)):
            accepted = matcher.accept(token)
            assert accepted == (token in tokens), (VOCABULARY.tokens[token], history)
            matcher.rollback(accepted)
        history.append((tokens, choose(draw, tokens)))
        assert matcher.accept(history[-1][1])
    for steps, (tokens, _) in enumerate(reversed(history), 1):
        matcher.rollback(1)
        assert allowed(matcher) == tokens, steps
    text = b"".join(VOCABULARY.tokens[token] for _, token in history).decode()
    assert 28 <= len(json.loads(text)["a"]) <= 31


def test_a_string_that_may_be_one_of_several_keeps_the_lengths_of_all():
    schema = {"anyOf": [{"type": "string", "maxLength": 40}, {"type": "string", "minLength": 30}]}
    grammar = compiled(schema)[0]
    for length, is_whole in ((29, False), (30, True), (40, True), (41, False)):
        matcher = grammar.matcher()
        assert all(map(matcher.accept, b'"' + b"a" * min(length, 40)))
        assert (length <= 40 and matcher.accept(ord('"')) and matcher.accept(256)) == is_whole


@given(
    st.lists(st.binary(max_size=12) | st.sampled_from([b'"', b'\\"', b"\\", b"u00", b'a", "b']), max_size=8)
)
def test_counts_of_tokens_are_those_of_their_bytes(tokens):
    counts = TokenCounts(tokens)
    for mode in range(6):
        for token, data in enumerate(tokens):
            at, count = mode, 0
            for byte in data:
                at, begins = step(at, byte)
                count += begins
                if at < 0:
                    break
            assert (counts.counts[mode, token], counts.ends[mode, token]) == (count, at < 0)
    assert counts.most == np.max(counts.counts, initial=0)
