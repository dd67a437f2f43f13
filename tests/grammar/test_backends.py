"""Both backends against each other and against independent validators, on random walks."""

from __future__ import annotations

import json
import random

import pytest
from constraint_corpus import CASES

from rootlet.errors import GrammarError
from rootlet.grammar.constraint import Constraint
from rootlet.grammar.llguidance_backend import LlguidanceBackend
from rootlet.grammar.xgrammar_backend import XGrammarBackend

from .walks import VOCABULARY, allowed, choose, walk

WALKS = 12


def constraint_of(case) -> Constraint:
    [(kind, value)] = case.params.items()
    return Constraint(kind, value if isinstance(value, str) else json.dumps(value))


@pytest.fixture(scope="module")
def xgrammar():
    return XGrammarBackend(lambda: VOCABULARY)


@pytest.fixture(scope="module")
def llguidance():
    return LlguidanceBackend(lambda: VOCABULARY)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_whatever_a_grammar_lets_through_is_valid(case, xgrammar):
    grammar = xgrammar.compile(constraint_of(case))
    draw = random.Random(case.name)
    complete = 0
    for _ in range(WALKS):
        text, ended = walk([grammar.matcher()], draw)
        complete += ended
        assert not ended or case.accepts(text.decode()), text
    assert complete or case.feature in ("any JSON", "tags"), "no walk came to an end"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_both_backends_allow_the_same_tokens(case, xgrammar, llguidance):
    constraint = constraint_of(case)
    grammars = [backend.compile(constraint) for backend in (xgrammar, llguidance)]
    draw = random.Random(case.name)
    for _ in range(WALKS // 3):
        walk([grammar.matcher() for grammar in grammars], draw)


@pytest.mark.parametrize("case", CASES[::7], ids=lambda case: case.name)
@pytest.mark.parametrize("name", ["xgrammar", "llguidance"])
def test_rollback_restores_every_earlier_place(case, name, request):
    backend = request.getfixturevalue(name)
    matcher = backend.compile(constraint_of(case)).matcher()
    draw = random.Random(case.name)
    history = []
    for _ in range(25):
        tokens = allowed(matcher)
        token = choose(draw, tokens)
        history.append((tokens, matcher.forced_text()))
        assert matcher.accept(token)
        if matcher.is_terminated:
            break
    while history:
        count = draw.randint(1, len(history))
        matcher.rollback(count)
        expected, history = history[-count], history[:-count]
        assert (allowed(matcher), matcher.forced_text()) == expected


def test_matchers_of_one_grammar_do_not_see_each_other(xgrammar):
    grammar = xgrammar.compile(Constraint("regex", "ab|cd"))
    first, second = grammar.matcher(), grammar.matcher()
    assert first.accept(ord("a"))
    assert not first.accept(ord("d"))
    assert second.accept(ord("c"))
    assert (first.forced_text(), second.forced_text()) == ("b", "d")


@pytest.mark.parametrize("name", ["xgrammar", "llguidance"])
def test_control_characters_stand_beside_digits(name, request):
    grammar = request.getfixturevalue(name).compile(Constraint("regex", r"\x01a[\x02f]\x7f0"))
    for text, is_meant in (
        (b"\x01a\x02\x7f0", True),
        (b"\x01af\x7f0", True),
        (b"\x1a", False),
        (b"\x01a/", False),
    ):
        matcher = grammar.matcher()
        assert all(map(matcher.accept, text)) == is_meant


REFUSED_SCHEMAS = {
    "the 2 different items": {
        "type": "array", "uniqueItems": True, "items": {"type": "boolean"}, "minItems": 3,
    },
    "exclude an object or a list": {"not": {"const": []}},
    "opposite of uniqueItems": {"type": "array", "not": {"uniqueItems": True}},
    "opposite of multipleOf": {"type": "integer", "not": {"multipleOf": 3}},
    "opposite of patternProperties": {"type": "object", "not": {"patternProperties": {"a": {"minimum": 1}}}},
    "if cannot be decided": {"if": {"uniqueItems": True}, "then": {"const": [1]}},
    "contains together with uniqueItems": {
        "type": "array", "contains": {"const": 1}, "items": {"enum": [1, 2]}, "uniqueItems": True,
    },
    "unevaluatedProperties beside not": {
        "type": "object", "not": {"required": ["a"]}, "unevaluatedProperties": False,
    },
    "multipleOf 7 is supported where bounds": {"type": "integer", "multipleOf": 7},
    "contentMediaType says in draft 7": {
        "$schema": "http://json-schema.org/draft-07/schema#", "contentMediaType": "application/json",
    },
    "nullable is no keyword": {"type": "string", "nullable": True},
    "more than 1024 combinations": {"allOf": [
        {"anyOf": [{f"min{of}": i, f"max{of}": 50 + i} for i in range(11)]}
        for of in ("Items", "Length", "Properties")
    ]},
    "or what no value can be": {"const": True, "allOf": [{"const": 1}]},
    "itself, or what no value can be": {"allOf": [{"type": "string"}, {"type": "integer"}]},
    "what no value can be (#: no value meets oneOf)": {"oneOf": [{"const": 1}, {"const": 1.0}]},
    "use anyOf": {"oneOf": [{"type": "array", "uniqueItems": True}, {"type": "array", "maxItems": 1}]},
    "enum must be a list": {"allOf": [{"enum": []}, {"minimum": 2}]},
    "than run without that limit": {"$ref": "#/$defs/n", "minimum": 3, "$defs": {"n": {"multipleOf": 7}}},
    "leads nowhere": {"$dynamicRef": "#x"},
    "that several schemas answer to": {
        "$dynamicRef": "#x",
        "$defs": {"a": {"$dynamicAnchor": "x"}, "b": {"$id": "b", "$dynamicAnchor": "x"}},
    },
    "leads out of the schema": {"$ref": "https://example.org/schema"},
    "'#/$defs/x' leads nowhere": {"$ref": "#/$defs/x"},
    "leads back to itself": {"anyOf": [{"type": "null"}, {"$ref": "#"}]},
    "back to itself with nothing": {"allOf": [{"type": "null"}, {"$ref": "#"}]},
    "a $ref that leads back to itself": {
        "$ref": "#/$defs/a", "type": "null", "$defs": {"a": {"not": {"$ref": "#/$defs/a"}}},
    },
    "nothing finite": {"type": "object", "properties": {"c": {"$ref": "#"}}, "required": ["c"]},
    "items must be a schema": {
        "$schema": "https://json-schema.org/draft/2020-12/schema", "items": [{"type": "integer"}],
    },
    "no text meets all": {"type": "string", "pattern": "^[a-z]{5}$", "maxLength": 3},
    "a lookahead elsewhere": {"type": "string", "pattern": "a(?=a)b"},
    "Did you mean 'minLength'? It is refused": {"type": "string", "minLenght": 3},
    "Did you mean 'required'?": {"type": "object", "Required": ["a"]},
    "minProperties above 1": {"type": "object", "minProperties": 2},
    "more than 6 patternProperties": {
        "type": "object", "patternProperties": {f"^{letter}": True for letter in "abcdefg"},
    },
    "type must be": {"type": "text"},
    "no value meets type and minimum and maximum": {"type": "integer", "minimum": 3, "maximum": 2},
    "no value meets type and enum": {"type": "string", "enum": [1]},
}  # fmt: skip

REFUSED_REGEXES = {
    "lookahead": "(?=a)a", "negative lookahead": "(?!a)b", "lookbehind": "(?<=a)b", "backreference": r"(a)\1",
    "word boundary": r"\bfoo", "inline flags": "(?i)a", "possessive": "a*+",
    "Unicode property": r"\p{L}",
    "anchor ^ inside": "a^b", "unclosed (": "(a", "unbalanced )": "a)", "nothing to repeat": "*a",
    "m above n": "a{3,2}", "impossible range": "[z-a]", "conditional": "(a)?(?(1)b|c)",
    "more than 10000": "a{20000}",
}  # fmt: skip

REFUSED_GRAMMARS = {
    "not defined": "root ::= a",
    "left recursion": 'root ::= root "b" | "a"',
    "begins with itself": 'root ::= a root | "x"\na ::= "y"?',
    "no finite text": 'root ::= "a" root',
    "no rule named root": 'x ::= "a"',
    "defined twice": 'root ::= "a"\nroot ::= "b"',
    "cannot be read": 'root := "a"',
    "impossible range": "root ::= [z-a]",
    "not known": r'root ::= "\q"',
}

REFUSED = [
    *(("json_schema", json.dumps(schema), said) for said, schema in REFUSED_SCHEMAS.items()),
    *(("regex", text, said) for said, text in REFUSED_REGEXES.items()),
    *(("ebnf", text, said) for said, text in REFUSED_GRAMMARS.items()),
    ("json_schema", "{", "not valid JSON"),
    ("json_schema", "[]", "must be an object or a boolean"),
    ("structural_tag", "{}", '"type": "structural_tag"'),
    ("structural_tag", json.dumps({"type": "structural_tag", "format": {"type": "token"}}), "'token'"),
    (
        "structural_tag",
        json.dumps({"type": "structural_tag", "structures": [], "triggers": []}),
        "structures",
    ),
]


@pytest.mark.parametrize(("kind", "text", "said"), REFUSED)
def test_what_cannot_be_enforced_is_refused_by_name(kind, text, said, xgrammar):
    with pytest.raises(GrammarError) as caught:
        xgrammar.compile(Constraint(kind, text))
    assert said in str(caught.value)
