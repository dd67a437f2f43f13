"""What each keyword of JSON Schema lets through, on both backends; what is right is written down here."""

from __future__ import annotations

import json

import pytest

from rootlet.errors import GrammarError
from rootlet.grammar.constraint import Constraint
from rootlet.grammar.llguidance_backend import LlguidanceBackend
from rootlet.grammar.xgrammar_backend import XGrammarBackend

from .walks import END, VOCABULARY

BACKENDS = [XGrammarBackend(lambda: VOCABULARY), LlguidanceBackend(lambda: VOCABULARY)]
DRAFT_4, DRAFT_7 = ({"$schema": f"http://json-schema.org/draft-0{n}/schema#"} for n in (4, 7))
LATEST = {"$schema": "https://json-schema.org/draft/2020-12/schema"}


def text(**limits) -> dict:
    return {"type": "string", **limits}


def mapping(required="", **properties) -> dict:
    return {"type": "object", "properties": properties, "required": required.split()}


WHOLE = {"type": "integer"}
KIND_A, KIND_B = (mapping("kind", kind={"const": kind}, **{kind: WHOLE}) for kind in "ab")
COUNTRY = mapping("", country={"enum": ["US", "NL"]}, code=text())
AB = mapping("", a=WHOLE, b=WHOLE, c=WHOLE)
CLOSED = {"additionalProperties": False}
TREE = mapping("", next={"$ref": "#/definitions/tree"}, leaf={"type": "boolean"})

CASES = [  # schema, values that may pass, values that may not
    # what says nothing
    ({"id": "https://example.com/a", "type": "integer", "readonly": True, "links": [], "name": "x", "comment": "y",
      "markdownDescription": "z", "preferredOrder": 1, "enumNames": ["q"], "x-y": 1, "note": 1, "note2": {"type": 3}},
     [1], ["a"]),
    (text(format="int32"), ["abc"], [1]),
    (text(format="color-hex"), ["#"], [None]),
    (text(nullable=False), ["a"], [None]),
    (WHOLE | {"minLength": 3}, [1], ["abc"]),
    # not
    ({"not": {"type": ["string", "object"]}}, [1, None, [], 1.5], ["a", {}]),
    ({"type": "integer", "not": {"const": 3}}, [2, 4, -3, 33], [3]),
    ({"type": "number", "not": {"enum": [1, 2.5]}}, [2, 2.4, 1.01, -1], [1, 2.5]),
    ({"not": {"enum": [True, None, "a"]}}, [False, "b", "aa", 0], [True, None, "a"]),
    ({"not": {"type": "integer"}}, [1.5, "a", -0.25], [1, 0]),
    ({"type": "integer", "not": {"minimum": 3, "maximum": 7}}, [2, 8], [3, 5, 7]),
    (text(**{"not": {"pattern": "^a"}}), ["b", "", "ba"], ["a", "ab"]),
    (text(**{"not": {"minLength": 2}}), ["", "a"], ["ab"]),
    (text(pattern="^[a-c]+$", **{"not": {"pattern": "b"}}), ["ac", "c"], ["abc", "b"]),
    (text(**{"not": {"format": "ipv4"}}), ["host", "1.2.3.4/8"], ["1.2.3.4", "127.0.0.1"]),
    (AB | {"not": {"required": ["a"]}}, [{}, {"b": 1}], [{"a": 1}, {"a": 1, "b": 1}]),
    (AB | {"not": {"required": ["a", "b"]}}, [{}, {"b": 1}, {"a": 1, "c": 1}], [{"a": 1, "b": 1}]),
    (AB | {"not": {"properties": {"a": {"const": 1}}, "required": ["a"]}}, [{}, {"a": 2}], [{"a": 1}]),
    (AB | {"not": {"anyOf": [{"required": ["a"]}, {"required": ["b"]}]}}, [{}, {"c": 1}], [{"a": 1}, {"b": 1}]),
    ({"type": "array", "items": WHOLE, "not": {"items": {"const": 1}}}, [[2], [1, 2]], [[], [1, 1]]),
    ({"not": {"not": {"type": "null"}}}, [None], [1]),
    ({"type": "array", "items": {"enum": [1, 2]}, "not": {"maxItems": 1}}, [[1, 2]], [[], [1]]),
    # if, then, else
    (COUNTRY | {"if": {"properties": {"country": {"const": "US"}}, "required": ["country"]},
                "then": {"properties": {"code": {"pattern": "^[0-9]{5}$"}}},
                "else": {"properties": {"code": {"pattern": "^[A-Z]{2}$"}}}},
     [{"country": "US", "code": "12345"}, {"country": "NL", "code": "AB"}, {"code": "AB"}, {"country": "US"}],
     [{"country": "US", "code": "AB"}, {"country": "NL", "code": "12345"}, {"code": "12345"}]),
    ({"if": {"type": "integer"}, "then": {"minimum": 3}, "else": {"type": "null"}}, [3, None], [2, "a"]),
    ({"type": "integer", "if": {"minimum": 5}, "then": {"multipleOf": 10, "maximum": 30}}, [3, 10], [5, 11]),
    ({"type": "integer", "if": {"const": 1}}, [1, 2], ["a"]),
    # what depends on other properties
    (AB | {"dependentRequired": {"a": ["b", "c"]}}, [{}, {"b": 1}, {"a": 1, "b": 1, "c": 1}], [{"a": 1}, {"a": 1, "b": 1}]),
    (AB | {"dependentSchemas": {"a": {"properties": {"b": {"maximum": 3}}, "required": ["b"]}}},
     [{"b": 9}, {"a": 1, "b": 3}], [{"a": 1}, {"a": 1, "b": 4}]),
    (DRAFT_4 | AB | {"dependencies": {"a": ["b"], "c": {"required": ["a"]}}}, [{"b": 1}, {"a": 1, "b": 1}],
     [{"a": 1}, {"c": 1}, {"a": 1, "c": 1}]),
    # one of several
    ({"oneOf": [AB | CLOSED | {"required": ["a"]}, mapping("d", d=WHOLE) | CLOSED]}, [{"a": 1}, {"d": 1}], [{}, {"a": 1, "d": 1}]),
    ({"oneOf": [KIND_A, KIND_B]}, [{"kind": "a", "a": 1}, {"kind": "b"}], [{"kind": "c"}, {"kind": "a", "a": "x"}]),
    (AB | {"oneOf": [{"required": ["a"]}, {"required": ["b"]}]}, [{"a": 1}, {"b": 1, "c": 1}], [{}, {"a": 1, "b": 1}]),
    ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, [1.5], [1, "a"]),
    ({"oneOf": [{"type": "integer", "maximum": 5}, {"type": "integer", "minimum": 3}]}, [2, 6], [3, 4, 5]),
    ({"oneOf": [text(pattern="^a"), text(pattern="b$")]}, ["a", "b", "ac", "cb"], ["ab", "aab", "c"]),
    ({"oneOf": [text(format="ipv4"), text(format="hostname")]}, ["a.b"], ["1.2.3.4", "-"]),
    ({"oneOf": [text(), text(enum=["a"])]}, ["b", "aa"], ["a"]),
    ({"oneOf": [{"type": "integer", "multipleOf": 1}, {"enum": [1, "a"]}]}, [2, "a"], [1]),
    ({"oneOf": [{"maxLength": 1}, {"minimum": 3}, {"type": "null"}]}, [], [True]),
    # numbers
    ({"type": "number", "multipleOf": 0.01}, [0.07, 1, 19.99, -3.5, 1.1], [0.001, 1.234]),
    ({"type": "number", "multipleOf": 0.01, "minimum": 0, "exclusiveMaximum": 1}, [0.99, 0, 0.5], [1, 0.999, -0.01]),
    ({"type": "number", "multipleOf": 0.5, "minimum": 0}, [0.5, 10, 7.5], [0.25, -0.5]),
    ({"type": "number", "multipleOf": 2.5, "minimum": -5, "maximum": 5}, [-5, -2.5, 0, 2.5], [1, 5.5, 7.5]),
    ({"type": "integer", "multipleOf": 100}, [0, 100, 12300, -200], [50, 1, 110]),
    ({"type": "integer", "multipleOf": 25, "minimum": 100}, [100, 125, 1000], [75, 110]),
    ({"type": "integer", "multipleOf": 1.5, "minimum": 0, "maximum": 9}, [0, 3, 9], [1, 2]),
    ({"allOf": [{"multipleOf": 4}, {"multipleOf": 6}], "type": "integer", "minimum": 1, "maximum": 30}, [12, 24], [4, 6, 8]),
    ({"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}, [0, 12, 2**63 - 1, -(2**63)], [2**63, 2**64]),
    ({"type": "number", "minimum": 1e18}, [2 * 10**18], [10**17]),
    ({"type": "number", "maximum": 1.7976931348623157e308}, [1, 2.5], ["a"]),
    (DRAFT_4 | {"type": "integer", "minimum": 3, "exclusiveMinimum": True, "maximum": 5, "exclusiveMaximum": False}, [4, 5], [3, 6]),
    ({"type": "integer", "minimum": 3, "exclusiveMinimum": True}, [4], [3]),
    # lists
    ({"type": "array", "items": WHOLE, "contains": {"minimum": 5}}, [[5], [1, 7, 2]], [[], [1]]),
    ({"type": "array", "items": {"enum": [1, 2]}, "contains": {"const": 1}, "minContains": 2, "maxContains": 2},
     [[1, 1], [1, 2, 1]], [[1], [1, 1, 1], [2]]),
    ({"type": "array", "items": {"enum": [1, 2]}, "contains": {"const": 1}, "minContains": 0, "maxContains": 1, "maxItems": 3},
     [[], [2, 1], [2, 2, 2]], [[1, 1], [2, 2, 2, 2]]),
    ({"type": "array", "prefixItems": [WHOLE], "items": text(), "contains": {"const": "a"}}, [[1, "a"], [1, "b", "a"]], [[1], [1, "b"]]),
    ({"type": "array", "items": {"enum": [*"abcdefghijkl"]}, "uniqueItems": True}, [[], ["a"], ["b", "l"]], [["a", "a"], ["c", "a", "c"]]),
    ({"type": "array", "items": {"enum": [*"abcdefghijkl"]}, "uniqueItems": True, "minItems": 2, "maxItems": 3},
     [["a", "c"], ["a", "b", "l"]], [["a"], ["a", "a"], [*"abcd"]]),
    ({"type": "array", "uniqueItems": True, "maxItems": 1, "items": text()}, [["x"], []], [["x", "y"]]),
    (DRAFT_7 | {"type": "array", "items": [WHOLE, text()], "additionalItems": {"type": "null"}}, [[1, "a", None], [1]], [["a"], [1, "a", 1]]),
    (LATEST | {"type": "array", "items": WHOLE, "additionalItems": False}, [[1, 2]], [["a"]]),
    # objects
    (AB | {"minProperties": 2}, [{"a": 1, "b": 1}, {"a": 1, "b": 2, "c": 3}], [{}, {"c": 1}]),
    (AB | {"maxProperties": 1}, [{}, {"c": 1}], [{"a": 1, "b": 1}]),
    (AB | {"required": ["b"], "minProperties": 2, "maxProperties": 2}, [{"a": 1, "b": 1}], [{"b": 1}, {"a": 1, "c": 1}]),
    (AB | {"additionalProperties": WHOLE, "maxProperties": 2}, [{"a": 1, "z": 1}, {"y": 1}], [{"a": 1, "b": 1, "z": 1}]),
    ({"type": "object", "patternProperties": {"^x-": WHOLE}, "additionalProperties": False}, [{"x-a": 1}, {}], [{"x-a": "b"}, {"a": 1}]),
    ({"type": "object", "properties": {"ab": WHOLE}, "patternProperties": {"^a": {"maximum": 3}}}, [{"ab": 3}], [{"ab": 4}]),
    ({"type": "object", "patternProperties": {"a": WHOLE, "b": {"minimum": 3}}, "additionalProperties": text()},
     [{"a": 1}, {"ab": 3}, {"c": "x"}], [{"ab": 2}, {"c": 1}, {"a": "x"}]),
    ({"allOf": [{"patternProperties": {"^a": WHOLE}}, {"properties": {"ab": {"minimum": 2}}, "required": ["ab"]}]}, [{"ab": 2}], [{"ab": 1}, {}]),
    (mapping("ab", ab=WHOLE, c=WHOLE) | {"propertyNames": {"minLength": 2}}, [{"ab": 1}], [{"ab": 1, "c": 1}]),
    ({"type": "object", "additionalProperties": WHOLE, "propertyNames": {"enum": ["a", "b"]}}, [{"a": 1}], [{"c": 1}]),
    ({"type": "object", "required": ["x"], "patternProperties": {"^x": WHOLE}, "additionalProperties": False}, [{"x": 1}], [{}]),
    (mapping("b", a=WHOLE | {"minimum": 5, "maximum": 1}, b=WHOLE), [{"b": 1}], [{"a": 3, "b": 1}]),
    (mapping("", a={"allOf": [{"type": "null"}, {"type": "string"}]}, b=WHOLE), [{}, {"b": 1}], [{"a": None}]),
    (mapping("", a=text()), [{"a": "x"}], [{"a": "x", "extra": 1}]),
    (mapping("", a=text()) | {"x-open-objects": True}, [{"a": "x", "extra": 1}, {"other": None}], [{"a": 1}]),
    ({"x-open-objects": True, "type": "array", "prefixItems": [mapping("", a=text())]}, [[{"b": 1}, 3]], [[{"a": 1}]]),
    # what is left of a schema
    (mapping("a", a=WHOLE) | {"unevaluatedProperties": False}, [{"a": 1}], [{"a": 1, "b": 1}]),
    ({"allOf": [mapping("", a=WHOLE)], "properties": {"b": WHOLE}, "unevaluatedProperties": text()},
     [{"b": 1, "a": 1}, {"c": "x"}], [{"c": 1}, {"a": "x"}]),
    ({"type": "array", "prefixItems": [WHOLE], "unevaluatedItems": False}, [[1], []], [[1, 2]]),
    # references
    ({"$ref": "#leaf", "$defs": {"x": {"$anchor": "leaf", "type": "null"}}}, [None], [1]),
    ({"$id": "https://a.example/b", "$ref": "c", "$defs": {"x": {"$id": "c", "$ref": "#/$defs/y", "$defs": {"y": WHOLE}}}}, [1], ["a"]),
    ({"$id": "https://a.example/b", "$ref": "https://a.example/b#/$defs/x", "$defs": {"x": WHOLE}}, [1], ["a"]),
    (DRAFT_4 | {"$ref": "#leaf", "definitions": {"x": {"id": "#leaf", "type": "null"}}}, [None], [1]),
    (DRAFT_7 | {"$ref": "#/definitions/x", "minimum": 5, "definitions": {"x": WHOLE}}, [1], ["a"]),
    ({"$ref": "#/definitions/x", "minimum": 5, "definitions": {"x": WHOLE}}, [6], [1]),
    ({"$dynamicRef": "#leaf", "$defs": {"x": {"$dynamicAnchor": "leaf", "type": "null"}}}, [None], [1]),
    (mapping("", schema={"$ref": "http://json-schema.org/draft-07/schema#/definitions/simpleTypes"}),
     [{"schema": "string"}], [{"schema": "text"}, {"schema": 1}]),
    ({"$ref": "#/definitions/tree", "definitions": {"tree": TREE}}, [{"next": {"leaf": True}}], [{"next": 1}]),
    # the oldest drafts
    (DRAFT_4 | {"type": "object", "properties": {"a": {"type": "integer", "required": True}, "b": {"type": "null", "required": False}}},
     [{"a": 1}], [{}, {"b": None}]),
    ({"$schema": "http://json-schema.org/draft-03/schema#", "type": ["null", {"type": "integer", "divisibleBy": 2, "maximum": 9, "minimum": 0}]},
     [None, 4], [3, "a"]),
    ({"$schema": "http://json-schema.org/draft-03/schema#", "type": "any", "disallow": "string", "extends": {"maximum": 3}}, [1], ["a", 4]),
    # a pattern is searched for, in the sense of ECMA-262
    (text(pattern="^https://"), ["https://a.b"], ["http://a", "xhttps://"]),
    (text(pattern="\\.png$"), ["cat.png", ".png"], ["cat.png ", "png"]),
    (text(pattern="a|^b$"), ["b", "xax"], ["bb", "c"]),
    (text(pattern="^(a|b$)"), ["ax", "b"], ["bx", "xa"]),
    (text(pattern="^(\\d+(,|$))+$"), ["1", "1,2", "12,3,"], ["", ",", "1,,"]),
    (text(pattern="(^|,)x"), ["x", "a,x", "xy"], ["ax"]),
    (text(pattern="^(?!ab)[a-c]+$"), ["a", "ba", "ca"], ["ab", "abc", ""]),
    (text(pattern="^(?=.*\\d)(?=.*[a-z])[a-z\\d]{2,4}$"), ["a1", "1bc"], ["ab", "12", "a1234"]),
    (text(pattern="^.$"), ["a", "\u00e9"], ["\u2028", "\u2029", "\r", "\n"]),
    (text(pattern="^\\S$"), ["a"], ["\ufeff", " ", "\u00a0", "\x1c", "\x85"]),
    (text(pattern="^[^\\s]$"), ["a"], ["\ufeff", "\x1c"]),
    (text(pattern="^a{,2}$"), ["a{,2}"], ["a", "aa", ""]),
    (text(pattern="^{a}$"), ["{a}"], ["a"]),
    (text(pattern="^[\\w-.]+$"), ["a-.", "_"], ["+", ""]),
    (text(pattern="^\\p{Lu}\\p{L}*$"), ["Ab", "\u00c9a"], ["ab", "A1"]),
    # formats
    (text(format="hostname"), ["a", "a-b.c", "ab-c", "a--b"], ["xn--l-fda", "ab--cd", "-a", "a-", "a_b", ""]),
    (text(format="email"), ["a@b.de"], ["a@xn--x.de", "a@b--c--d.de"[:0], "a"]),
    (text(format="regex"), ["^a+$", "[a-z]*"], ["(", "*"]),
    (text(format="json-pointer"), ["", "/a/~0"], ["a", "/~2"]),
    (text(format="uri-reference"), ["/a/b", "https://a.b"], ["\\", " "]),
    (text(contentEncoding="base64"), ["", "YQ=="], ["a", "%%"]),
    (text(format="ipv6", maxLength=39), ["0:0:0:0:0:0:0:1"], ["::g", "1"]),
]  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: type(backend).__name__)
@pytest.mark.parametrize(("schema", "valid", "invalid"), CASES, ids=lambda one: json.dumps(one)[:60])
def test_what_a_keyword_lets_through(schema, valid, invalid, backend):
    grammar = backend.compile(Constraint("json_schema", json.dumps(schema)))

    def passes(value) -> bool:
        matcher = grammar.matcher()
        document = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f").encode()
        return all(map(matcher.accept, document)) and matcher.accept(END)

    assert [value for value in valid if not passes(value)] == []
    assert [value for value in invalid if passes(value)] == []


EXCLUDED_BY_THEIR_FORMAT = {
    "date-time": "yesterday", "time": "noon", "duration": "long", "uri": "not a uri", "hostname": "-x-",
    "base64": "%%", "ipv4": "1.2.3", "email": "a", "uuid": "1", "regex": "(", "json-pointer": "a",
}  # fmt: skip


@pytest.mark.parametrize(("form", "value"), EXCLUDED_BY_THEIR_FORMAT.items())
def test_a_value_that_its_format_excludes_is_no_value(form, value):
    for beside in ({"enum": [value]}, {"const": value}, {"allOf": [{"enum": [value, 1]}]}):
        with pytest.raises(GrammarError, match="no value"):
            BACKENDS[0].compile(Constraint("json_schema", json.dumps(text(format=form, **beside))))


@pytest.mark.parametrize(
    "pattern", ["^x{2}{3}$", "^x*{2}$", "^\\a$", "^x+*$", "[b-a]", "(a", "^a\\Z", "{2}", "\\p{Xx}"]
)
def test_a_pattern_that_ecma_262_does_not_have_is_refused(pattern):
    with pytest.raises(GrammarError, match="regex"):
        BACKENDS[0].compile(Constraint("json_schema", json.dumps(text(pattern=pattern))))


@pytest.mark.parametrize(
    "name",
    ["maxLenght", "requried", "propertes", "Required", "minlength", "additonalProperties", "patern", "itmes"],
)
def test_what_looks_like_a_misspelt_keyword_is_refused(name):
    with pytest.raises(GrammarError, match="Did you mean"):
        BACKENDS[0].compile(Constraint("json_schema", json.dumps({"type": "string", name: 1})))
