"""``uniqueItems``: what a list has already is never let through again, and no output ends nowhere."""

from __future__ import annotations

import itertools
import json
import random

import jsonschema
import pytest

from rootlet.errors import GrammarError
from rootlet.grammar.constraint import Constraint
from rootlet.grammar.llguidance_backend import LlguidanceBackend
from rootlet.grammar.xgrammar_backend import XGrammarBackend

from .walks import VOCABULARY, allowed, choose, takes, walk

BACKENDS = {
    "xgrammar": XGrammarBackend(lambda: VOCABULARY),
    "llguidance": LlguidanceBackend(lambda: VOCABULARY),
}
PAIR = {
    "type": "object",
    "properties": {"a": {"enum": ["x", "y"]}, "b": {"type": "boolean"}},
    "required": ["a"],
}
LISTS = {
    "texts": {"items": {"type": "string"}},
    "long texts": {"items": {"type": "string", "maxLength": 30}},
    "few texts": {"items": {"type": "string", "pattern": "^(a|ab|b)$"}, "minItems": 2},
    "texts of letters": {
        "items": {"type": "string", "pattern": "^[ab]{1,3}$"},
        "minItems": 9,
        "maxItems": 12,
    },
    "numbers in bounds": {"items": {"type": "integer", "minimum": 1, "maximum": 12}, "minItems": 8},
    "twelve numbers": {"items": {"type": "integer", "minimum": 1, "maximum": 12}, "minItems": 12},
    "atoms": {"items": {"type": ["number", "null", "boolean"]}, "minItems": 3},
    "objects": {"items": PAIR, "minItems": 2, "maxItems": 3},
    "all objects": {"items": PAIR, "minItems": 6},
    "lists": {
        "items": {"items": {"enum": [1, 2, 1.5, 10]}, "minItems": 1, "maxItems": 2, "uniqueItems": True}
    },
    "many values": {"items": {"enum": [*range(10), "1", "x", None]}, "minItems": 13},
    "declared": {
        "prefixItems": [{"enum": [1, 2]}, {"enum": [1, 2]}],
        "items": {"enum": [1, 2, 3]},
        "minItems": 2,
    },
    "anything": {"items": True, "maxItems": 4},
}
SCHEMAS = {name: {"type": "array", "uniqueItems": True, **given} for name, given in LISTS.items()}


def compiled(schema, name="xgrammar", kind="json_schema"):
    return BACKENDS[name].compile(Constraint(kind, json.dumps(schema)))


@pytest.mark.parametrize("name", [*BACKENDS, "both"])
@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS)
def test_no_item_comes_twice_and_no_output_ends_nowhere(schema, name):
    grammars = [compiled(schema, one) for one in (BACKENDS if name == "both" else [name])]
    num_whole = 0
    for seed in range(8):
        text, is_whole = walk([grammar.matcher() for grammar in grammars], random.Random(seed))
        if is_whole:
            jsonschema.validate(json.loads(text), schema)
            num_whole += 1
    assert num_whole or schema.get("minItems", 0) > 5


@pytest.mark.parametrize("name", BACKENDS)
def test_exactly_the_lists_of_different_items_are_let_through(name):
    letters = {"type": "array", "uniqueItems": True, "items": {"type": "string", "pattern": "^[ab]{1,2}$"}}
    grammar = compiled(letters, name)
    for count in range(4):
        for items in itertools.product(["a", "b", "ab", "ba", "aa"], repeat=count):
            assert takes(grammar, json.dumps(items)) == (len(set(items)) == count), items


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize(
    ("text", "is_distinct"),
    [
        ('["a", "b"]', True),
        ('["a\\n", "a\\t"]', True),
        ('["\\"", "\\""]', False),
        ('["é", "e"]', True),
        ("[1, 1.0]", False),
        ("[1, 1.5]", True),
        ("[0, -0]", False),
        ("[1, true]", True),
        ('["1", 1]', True),
        ("[[], {}]", True),
        ("[[1], [1]]", False),
        ('[{"a": 1, "b": 2}, {"b": 2, "a": 1.0}]', False),
        ('[{"a": 1, "b": 2}, {"b": 2}]', True),
        ('[["a", "a"], "a"]', True),
        ('["],[", "],["]', False),
    ],
)
def test_items_are_compared_as_json_compares(text, is_distinct, name):
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", "x-open": True, "type": "array"}
    assert takes(compiled(schema, name), text), "no text of this grammar"
    assert takes(compiled(schema | {"uniqueItems": True}, name), text) == is_distinct


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("key", ["texts", "objects", "lists", "twelve numbers"])
def test_tokens_taken_back_are_forgotten(key, name):
    matcher = compiled(SCHEMAS[key], name).matcher()
    draw = random.Random(key)
    history = []
    for _ in range(60):
        tokens = allowed(matcher)
        history.append(tokens)
        assert matcher.accept(choose(draw, tokens))
        if matcher.is_terminated or draw.random() < 0.2:
            count = draw.randint(1, len(history))
            matcher.rollback(count)
            expected = history[-count]
            del history[-count:]
            assert allowed(matcher) == expected


@pytest.mark.parametrize("name", BACKENDS)
def test_lists_in_tags_too(name):
    schema = {"type": "object", "properties": {"tags": SCHEMAS["texts"]}, "required": ["tags"]}
    tags = {"type": "tag", "begin": "<call>", "content": {"type": "json_schema", "json_schema": schema}}
    form = {"type": "triggered_tags", "triggers": ["<call>"], "tags": [tags | {"end": "</call>"}]}
    grammar = compiled({"type": "structural_tag", "format": form}, name, "structural_tag")
    for items, is_distinct in ((["a", "b"], True), (["a", "b", "a"], False), (["a", "aa"], True)):
        text = f"[1, 1] <call>{json.dumps({'tags': items})}</call>"
        assert takes(grammar, text) == is_distinct


def test_two_matchers_keep_their_own_items():
    grammar = compiled(SCHEMAS["texts"])
    first, second = grammar.matcher(), grammar.matcher()
    for matcher, text in ((first, '["a"'), (second, '["b"')):
        assert all(map(matcher.accept, text.encode()))
    other = first.fork()
    for matcher, text in ((first, ', "b"'), (other, ', "b"'), (second, ', "a"')):
        assert all(map(matcher.accept, text.encode()))
    assert not all(map(second.accept, b', "b"'))


def test_more_items_than_there_are_end_in_an_error():
    assert not takes(compiled(SCHEMAS["many values"]), "[0, 1]")
    with pytest.raises(GrammarError, match="14 is more than the 13 different items"):
        compiled(SCHEMAS["many values"] | {"minItems": 14})
    with pytest.raises(GrammarError, match="no further item"):
        takes(compiled(SCHEMAS["few texts"] | {"minItems": 4}), '["a", "b", "ab"]')
