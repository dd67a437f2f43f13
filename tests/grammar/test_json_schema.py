"""Schemas that a value must meet together, against jsonschema."""

from __future__ import annotations

import contextlib
import json
import random

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rootlet.errors import GrammarError
from rootlet.grammar.constraint import Constraint
from rootlet.grammar.json_schema import compile_schema
from rootlet.grammar.json_schema.keywords import APPLIERS, OF_TYPE
from rootlet.grammar.json_schema.kinds import key
from rootlet.grammar.json_schema.merge import all_of
from rootlet.grammar.llguidance_backend import LlguidanceBackend
from rootlet.grammar.xgrammar_backend import XGrammarBackend

from .walks import END, VOCABULARY, walk

BACKENDS = [XGrammarBackend(lambda: VOCABULARY), LlguidanceBackend(lambda: VOCABULARY)]
KEYWORDS = sorted({*APPLIERS, *sum(OF_TYPE.values(), ()), "type"})
VALUES = [None, True, False, 0, 1, 2, 3, 1.5, "", "a", "aa", "b", "ab"]


def bounded(kind: str, low: str, high: str) -> st.SearchStrategy[dict]:
    pairs = st.tuples(st.integers(0, 3), st.integers(0, 3)).map(sorted)
    both = pairs.map(lambda pair: {"type": kind, low: pair[0], high: pair[1]})
    return both | st.sampled_from([{"type": kind}, {"type": kind, low: 1}, {"type": kind, high: 2}])


SCALARS = st.one_of(
    bounded("integer", "minimum", "maximum"),
    bounded("number", "minimum", "maximum"),
    bounded("string", "minLength", "maxLength"),
    st.sampled_from([{"type": "string", "pattern": "^a*b?$"}, {"$ref": "#/$defs/x"}, {"type": "null"}, True]),
    st.lists(
        st.sampled_from(["integer", "null", "string", "boolean", "number"]), min_size=1, unique=True
    ).map(lambda types: {"type": types}),
    st.lists(st.sampled_from(VALUES), min_size=1, max_size=5).map(lambda values: {"enum": values}),
    st.sampled_from(VALUES).map(lambda value: {"const": value}),
)


def combined(schemas: st.SearchStrategy) -> st.SearchStrategy:
    return st.recursive(
        schemas,
        lambda inner: st.one_of(
            st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"allOf": parts}),
            st.lists(inner, min_size=1, max_size=2).map(lambda parts: {"anyOf": parts}),
            st.tuples(schemas, inner).map(
                lambda two: {**two[0], "allOf": [two[1]]} if two[0] is not True else two[1]
            ),
            st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"oneOf": parts}),
            inner.map(lambda part: {"not": part}),
            st.tuples(inner, inner, inner).map(lambda parts: dict(zip(("if", "then", "else"), parts))),
        ),
        max_leaves=5,
    )


SIMPLE = st.sampled_from(
    [{"type": "integer", "maximum": 2}, {"type": ["string", "integer"]}, {"enum": [1, "a"]}]
)
NAMES = st.sampled_from("abc")
OBJECTS = st.fixed_dictionaries(
    {"type": st.just("object")},
    optional={
        "properties": st.dictionaries(NAMES, SIMPLE, max_size=3),
        "required": st.lists(NAMES, unique=True, max_size=2),
        "additionalProperties": st.booleans() | SIMPLE,
        "maxProperties": st.integers(0, 4),
        "minProperties": st.integers(0, 2),
        "patternProperties": st.dictionaries(st.sampled_from(["^a", "b", "^[ab]$"]), SIMPLE, max_size=2),
        "propertyNames": st.sampled_from([{"maxLength": 1}, {"pattern": "a|b"}, {"enum": ["a", "b"]}]),
        "dependentRequired": st.dictionaries(NAMES, st.lists(NAMES, max_size=2), max_size=1),
        "dependentSchemas": st.dictionaries(NAMES, st.sampled_from([{"required": ["b"]}, False]), max_size=1),
        "unevaluatedProperties": st.booleans() | SIMPLE,
    },
)
ARRAYS = st.fixed_dictionaries(
    {"type": st.just("array")},
    optional={
        "prefixItems": st.lists(SIMPLE, max_size=2),
        "items": st.booleans() | SIMPLE,
        "minItems": st.integers(0, 2),
        "maxItems": st.integers(1, 3),
        "uniqueItems": st.just(True),
        "contains": SIMPLE,
        "minContains": st.integers(0, 2),
        "maxContains": st.integers(1, 2),
        "unevaluatedItems": st.booleans(),
    },
)


def whole(schema) -> dict:
    """The schema with what its references lead to."""
    return {"allOf": [schema], "$defs": {"x": {"type": ["integer", "string"], "minimum": 1}}}


def is_valid(schema, value) -> bool:
    return jsonschema.Draft202012Validator(schema).is_valid(value)


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: type(backend).__name__)
@settings(deadline=None)
@given(combined(SCALARS).map(whole))
def test_simple_values_are_let_through_if_and_only_if_they_are_valid(backend, schema):
    try:
        grammar = backend.compile(Constraint("json_schema", json.dumps(schema)))
    except GrammarError as error:
        reason = str(error)
        grammar = None
    if grammar is None:
        none_is_valid = not any(is_valid(schema, value) for value in VALUES)
        assert none_is_valid or "within bounds" in reason or "opposite of" in reason, reason
        return
    for value in VALUES:
        matcher = grammar.matcher()
        let_through = all(map(matcher.accept, json.dumps(value).encode())) and matcher.accept(END)
        assert let_through == is_valid(schema, value), value


@settings(deadline=None)
@given(combined(OBJECTS | ARRAYS).map(whole), st.integers(0, 99))
def test_objects_and_lists_that_both_backends_let_through_are_valid(schema, seed):
    try:
        grammars = [backend.compile(Constraint("json_schema", json.dumps(schema))) for backend in BACKENDS]
    except GrammarError:
        return
    text, ended = walk([grammar.matcher() for grammar in grammars], random.Random(seed))
    assert not ended or is_valid(schema, json.loads(text)), text


JSON = st.recursive(
    st.sampled_from(
        [None, True, False, -1, 0, 1, 2.5, float("inf"), "a", "integer", "#", "#/allOf/0", [], {}]
    ),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(NAMES | st.sampled_from(KEYWORDS), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from(KEYWORDS), JSON, max_size=3), min_size=1, max_size=3))
def test_whatever_else_is_given_is_refused_by_name(schemas):
    with contextlib.suppress(GrammarError):
        compile_schema(json.dumps({"allOf": schemas}))


def test_nothing_is_added_to_a_schema_by_true_or_by_itself():
    assert all_of(True, {"type": "null"}, {}, {"type": "null"}) == {"type": "null"}
    assert all_of() is True
    assert all_of({"type": "null"}, False) is False
    assert all_of({"allOf": [{"a": 1}, {"b": 2}]}, {"b": 2}) == {"allOf": [{"a": 1}, {"b": 2}]}


def test_values_are_equal_as_json_has_it():
    assert key({"a": [1, 2.0], "b": True}) == key({"b": True, "a": [1.0, 2]})
    assert len({key(value) for value in (0, False, None, "0", "", [], {}, [0])}) == 8
