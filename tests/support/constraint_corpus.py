"""Constraints with their features, and who else can tell whether an output meets them.

Outputs are judged by others than the code under test: ``jsonschema``, ``re.fullmatch``, the standard library
for formats, and for grammars recognisers written here by hand.
"""

from __future__ import annotations

import base64
import datetime
import ipaddress
import json
import re
import uuid
from collections.abc import Callable
from typing import NamedTuple

import jsonschema


class Case(NamedTuple):
    """``params``: the constraint as a sampling parameter; ``accepts``: whether a complete output meets it."""

    feature: str
    params: dict
    accepts: Callable[[str], bool]

    @property
    def name(self) -> str:
        [(kind, value)] = self.params.items()
        return f"{self.feature}: {kind} {json.dumps(value)[:60]}"


FORMATS = jsonschema.FormatChecker(formats=())
for _name, _check in {
    "date": datetime.date.fromisoformat,
    "date-time": lambda text: datetime.datetime.fromisoformat(text.replace("Z", "+00:00")),
    "time": lambda text: datetime.time.fromisoformat(text.replace("Z", "+00:00")),
    "base64": lambda text: base64.b64decode(text, validate=True),
    "ipv4": ipaddress.IPv4Address,
    "ipv6": ipaddress.IPv6Address,
    "uuid": uuid.UUID,
    "email": re.compile(r"[^@\s]+@[^@\s.]+(\.[^@\s.]+)+").fullmatch,
    "hostname": re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)(\.(?!-)[a-z0-9-]{1,63}(?<!-))*").fullmatch,
    "uri": re.compile(r"[a-z][a-z0-9+.-]*://[^\s/]+(/\S*)?").fullmatch,
    "duration": re.compile(r"P(?!$)(\d+W|(\d+D)?(T(?=\d)(\d+H)?(\d+M)?(\d+S)?)?)").fullmatch,
}.items():
    FORMATS.checks(_name, raises=ValueError)(
        lambda value, check=_check: not isinstance(value, str) or check(value) is not None
    )


def _no_repeats(pairs):
    names = [name for name, _ in pairs]
    assert all(isinstance(name, str) for name in names)
    return dict(pairs)


def _schema(feature: str, schema) -> Case:
    if not isinstance(schema, bool):
        jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema, format_checker=FORMATS)

    def accepts(text: str) -> bool:
        return validator.is_valid(json.loads(text, object_pairs_hook=_no_repeats))

    return Case(feature, {"json_schema": json.dumps(schema)}, accepts)


def _regex(feature: str, pattern: str) -> Case:
    return Case(feature, {"regex": pattern}, lambda text: re.fullmatch(pattern, text) is not None)


def _string(**limits) -> dict:
    return {"type": "string", **limits}


def _object(required="", **properties) -> dict:
    return {"type": "object", "properties": properties, "required": required.split()}


INT = {"type": "integer", "minimum": 0, "maximum": 99}
BOOL = {"type": "boolean"}
NULL = {"type": "null"}
WORD = _string(pattern="^[a-z]{1,8}$")
NAME = _string(minLength=1, maxLength=8)

SCHEMAS = {
    "simple types": [BOOL, NULL, INT, WORD, {"type": ["integer", "null"], "maximum": 9, "minimum": 0}],
    "objects": [
        _object("name age", name=NAME, age=INT),
        _object("", a=INT, b=BOOL, c=NULL),
        _object("b", a=INT, b=BOOL, c=NULL),
        _object("a c", a=INT, b=BOOL, c=NULL),
        {"type": "object", "properties": {}},
        _object("x", x=_object("y", y=_object("z", z=INT))),
        _object("user", user=_object("id tags", id=INT, tags={"type": "array", "items": WORD,
            "maxItems": 2})),
    ],
    "nested objects": [
        _object("point", point=_object("x y", x=INT, y=INT)),
        _object("a b", a=_object("k", k=WORD), b=_object("k", k=BOOL)),
        {"type": "array", "items": _object("n", n=INT, note=WORD), "minItems": 1, "maxItems": 2},
        _object("deep", deep=_object("deep", deep=_object("deep", deep={"const": 1}))),
    ],
    "arrays with bounds": [
        {"type": "array", "items": INT, "minItems": 2, "maxItems": 4},
        {"type": "array", "items": INT, "maxItems": 3},
        {"type": "array", "items": BOOL, "minItems": 3, "maxItems": 3},
        {"type": "array", "items": NULL, "maxItems": 0},
        {"type": "array", "items": {"type": "array", "items": INT, "maxItems": 2}, "minItems": 1,
            "maxItems": 2},
        {"type": "array", "items": False},
        {"type": "array", "uniqueItems": False, "items": INT, "maxItems": 1},
    ],
    "uniqueItems": [
        {"type": "array", "uniqueItems": True, "items": {"enum": ["red", "green", "blue"]}},
        {"type": "array", "uniqueItems": True, "items": {"enum": [1, 1.0, True, "x", 2]}, "minItems": 2,
            "maxItems": 3},
        {"type": "array", "uniqueItems": True, "items": {"anyOf": [BOOL, {"const": "both"}]}, "minItems": 3},
        {"type": "array", "uniqueItems": True, "items": INT, "maxItems": 1},
    ],
    "tuples": [
        {"type": "array", "prefixItems": [INT, BOOL], "minItems": 2},
        {"type": "array", "prefixItems": [INT, BOOL, NULL], "minItems": 1},
        {"type": "array", "prefixItems": [WORD], "items": INT, "minItems": 2, "maxItems": 3},
        {"type": "array", "prefixItems": [INT, INT], "maxItems": 1},
    ],
    "enums": [
        {"enum": ["red", "green", "blue"]},
        {"enum": ["a", 1, 2.5, None, True, [1, 2], {"k": "v"}]},
        {"type": "string", "enum": ["only", 3]},
        {"enum": ["with \"quotes\"", "back\\slash", "new\nline"]},
        {"type": "array", "items": {"enum": [1, 2, 3]}, "minItems": 1, "maxItems": 3},
    ],
    "const": [
        {"const": "fixed"},
        {"const": {"a": [1, 2, {"b": None}]}},
        _object("kind value", kind={"const": "circle"}, value=INT),
        {"const": 0.1},
    ],
    "anyOf": [
        {"anyOf": [INT, NULL]},
        {"anyOf": [WORD, {"type": "array", "items": WORD, "minItems": 1, "maxItems": 2}]},
        _object("v", v={"anyOf": [BOOL, {"const": "maybe"}]}),
        {"anyOf": [_object("a", a=INT), _object("b", b=BOOL)]},
        {"allOf": [_object("a", a=INT)]},
        {"anyOf": [_object("kind n", kind={"enum": ["x", "y"]}, n=INT), _object("", kind=WORD, m=BOOL)]},
        {"anyOf": [{"type": "array", "prefixItems": [WORD, INT], "minItems": 2}, {"type": "array",
            "prefixItems": [{"const": "cat"}, {"type": "number", "minimum": 0, "maximum": 9}]}]},
        {"anyOf": [{"const": {"a": [1, {"b": None}]}}, _object("a", a={"type": "array", "items": INT,
            "maxItems": 2}), {"type": "object", "additionalProperties": BOOL, "maxProperties": 1}]},
        {"anyOf": [_string(maxLength=300), _string(pattern="^x"), {"const": "xy"}]},
    ],
    "allOf": [
        {"allOf": [{"type": "integer"}, {"minimum": 3}, {"maximum": 40, "multipleOf": 4}, {"multipleOf": 6}]},
        {
            "$defs": {"base": _object("id", id=INT, note=WORD)},
            "allOf": [{"$ref": "#/$defs/base"}, _object("tags", tags={"type": "array", "maxItems": 2})],
            "properties": {"tags": {"items": WORD}},
        },
        {"allOf": [_object("a", a=INT, b=WORD), {"properties": {"b": {"maxLength": 2}},
            "additionalProperties": {"type": ["integer", "string"]}, "required": ["b"]}]},
        {"allOf": [{"type": ["number", "null"], "exclusiveMinimum": 0}, {"type": ["integer", "string"],
            "maximum": 5}]},
        {"allOf": [{"type": "array", "prefixItems": [INT], "items": WORD}, {"prefixItems": [{"minimum": 9},
            {"minLength": 2}], "minItems": 2, "maxItems": 3}]},
        {"allOf": [{"anyOf": [INT, WORD, NULL]}, {"anyOf": [{"type": "string", "maxLength": 3}, {"const": 7},
            {"const": 700}]}]},
        {"anyOf": [{"$ref": "#/$defs/up"}, {"type": "null"}], "$defs": {
            "tree": _object("v kids", v=INT, kids={"type": "array", "items": {"$ref": "#/$defs/tree"},
                "maxItems": 1}),
            "up": {"$ref": "#/$defs/tree", "properties": {"v": {"minimum": 50}, "kids": {"items": {
                "$ref": "#/$defs/up"}}}}}},
    ],
    "applied beside others": [
        {"$defs": {"n": {"type": "integer"}}, "$ref": "#/$defs/n", "minimum": 3, "maximum": 99},
        {**_object("", a=INT, b=BOOL), "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
        {**_object("kind", kind={"enum": ["cat", "dog"]}), "oneOf": [
            {"properties": {"kind": {"const": "cat"}, "lives": INT}, "required": ["kind", "lives"]},
            {"properties": {"kind": {"const": "dog"}, "tricks": WORD}, "required": ["kind"]}]},
        {"enum": [1, 2.5, "x", "long", None, [3], {"a": 7}], "type": ["number", "string", "object"],
            "minimum": 2, "maxLength": 2, "properties": {"a": {"const": 7}}},
        {"const": {"a": 3}, "type": "object", "required": ["a"]},
        {"type": "object", "additionalProperties": False, "properties": {"a": INT, "b": INT},
            "anyOf": [{"required": ["a", "b"]}, {"required": ["c"]}]},
    ],
    "oneOf": [
        {"oneOf": [INT, WORD]},
        {"oneOf": [{"const": "x"}, {"enum": ["y", "z"]}]},
        {
            "oneOf": [
                _object("kind r", kind={"const": "circle"}, r=INT),
                _object("kind w h", kind={"const": "box"}, w=INT, h=INT),
            ]
        },
    ],
    "$ref": [
        {"$defs": {"n": INT}, **_object("a b", a={"$ref": "#/$defs/n"}, b={"$ref": "#/$defs/n"})},
        {"definitions": {"w": WORD}, "type": "array", "items": {"$ref": "#/definitions/w"}, "maxItems": 2},
        _object("a b", a=BOOL, b={"$ref": "#/properties/a"}),
        {"$defs": {"a/b": NULL, "c~d e": INT}, "anyOf": [{"$ref": "#/$defs/a~1b"},
            {"$ref": "#/$defs/c~0d%20e"}]},
        {"$defs": {"x": {"$ref": "#/$defs/y"}, "y": BOOL}, "$ref": "#/$defs/x"},
    ],
    "recursion": [
        {
            "$defs": {"node": _object("v next", v=INT, next={"anyOf": [NULL, {"$ref": "#/$defs/node"}]})},
            "$ref": "#/$defs/node",
        },
        _object("c", c={"type": "array", "items": {"$ref": "#"}, "maxItems": 1}),
        {"anyOf": [INT, {"type": "array", "items": {"$ref": "#"}, "minItems": 1, "maxItems": 2}]},
        {
            "$defs": {
                "a": _object("b", b={"anyOf": [{"$ref": "#/$defs/b"}, NULL]}),
                "b": _object("a", a={"anyOf": [NULL, {"$ref": "#/$defs/a"}]}),
            },
            "$ref": "#/$defs/a",
        },
    ],
    "patterns": [
        _string(pattern="^[A-Z]{2}-[0-9]{3}$"),
        _string(pattern="^\\d{4}$"),
        _string(pattern='^say "[a-z]{1,4}"\\\\$'),
        _string(pattern="^[^a-z]{3}$"),
        _string(pattern="^(yes|no)( sir)?$"),
        _string(pattern="^.{2}\\.$"),
        _string(pattern="ab?c", maxLength=5),  # found anywhere
    ],
    "patterns, formats and lengths": [
        _string(pattern="^[a-z]+$", minLength=2, maxLength=5),
        _string(pattern="a", minLength=3, maxLength=4),
        _string(pattern='^([a-z]|"|\\\\)+$', maxLength=3),
        _string(pattern="^[a-z0-9-]+$", maxLength=200, minLength=1),
        _string(format="date", pattern="^19", maxLength=10),
        _string(format="uri", maxLength=24),
        _string(format="email", minLength=9, maxLength=16),
        _string(format="hostname", maxLength=2),
        _string(format="password", minLength=2, maxLength=8),
        _string(format="base64", maxLength=8),
        _object("id tag", id=_string(pattern="^(ab|c)*$", minLength=4, maxLength=4),
            tag=WORD | {"minLength": 2}),
        _string(pattern="[ab]c?", minLength=3, maxLength=3),
        {"type": "array", "items": _string(pattern="[xy]$", maxLength=2), "minItems": 1, "maxItems": 2},
    ],
    "string lengths": [
        _string(minLength=3, maxLength=3),
        _string(maxLength=6),
        _string(maxLength=0),
        _object("s", s=_string(minLength=2, maxLength=4)),
        _string(maxLength=80),
    ],
    "formats": [_string(format=name) for name in
                ("date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uri",
                 "uuid")],
    "number bounds": [
        {"type": "integer", "minimum": 17, "maximum": 23},
        {"type": "integer", "exclusiveMinimum": -3, "exclusiveMaximum": 3},
        {"type": "integer", "minimum": 995, "maximum": 10_012},
        {"type": "integer", "maximum": -17, "minimum": -1234},
        {"type": "integer", "minimum": 1.5, "maximum": 3.5},
        {"type": "integer", "multipleOf": 25, "minimum": 0, "maximum": 500},
        {"type": "number", "minimum": 0.25, "maximum": 0.75},
        {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
        {"type": "number", "minimum": -1.5, "maximum": 2.25},
        {"type": "number", "exclusiveMaximum": -99.5, "minimum": -100},
        {"type": "number", "minimum": 3},
        {"type": "integer"},
        {"type": "number"},
    ],
    "additionalProperties": [
        {"type": "object", "additionalProperties": INT, "maxProperties": 2},
        {"type": "object", "additionalProperties": BOOL, "minProperties": 1, "maxProperties": 1},
        {**_object("a", a=INT), "additionalProperties": False},
        {**_object("a", a=INT), "additionalProperties": NULL},
        {**_object("ab", ab=INT, ac=INT), "additionalProperties": {"type": "string", "maxLength": 3}},
        {"type": "object", "required": ["q"], "additionalProperties": INT},
        {"type": "object", "propertyNames": {"pattern": "^[ab]{2}$"}, "additionalProperties": INT,
            "maxProperties": 2},
        {"type": "object", "propertyNames": {"enum": ["x", "y"]}, "additionalProperties": BOOL,
            "maxProperties": 2},
        {"type": "object", "patternProperties": {"^n_[a-z]{1,3}$": INT}, "maxProperties": 2},
        {**_object("z", z=BOOL), "patternProperties": {"^a[bc]?$": INT}},
    ],
    "unicode": [
        {"enum": ["日本", "ελλάδα", "naïve 🎉"]},
        _object("ключ", ключ={"const": "значение"}),
        _string(pattern="^[à-ü]{2,4}$"),
        _string(pattern="^\\u00e9[日-本]$"),
        {"const": "tab\tand \u0001 and \x7f"},
    ],
    "annotations": [
        {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "x", "title": "T",
            "x-note": 1, **INT},
        {"description": "any", "default": 3, "type": "boolean", "examples": [True]},
    ],
    "keywords of other types": [{"type": "boolean", "minLength": 3, "minimum": 5}, {"minLength": 2,
        "maxLength": 3}],
}  # fmt: skip

REGEXES = {
    "classes": [r"[abc]{3}", r"[^a-z]{2}", r"\d{3}-\d{4}", r"\w{1,6}", r"[\w.]{2,4}", r"\S{3}",
        r"[A-Fa-f0-9]{6}", r"[]a-]{2}"],
    "alternatives": [r"yes|no|maybe", r"(a|b)(c|d)", r"(?:red|green) (?:car|bus)", r"(foo|foobar)baz",
        r"(ab|a)(c|bcd)"],
    "repetition": [r"a+b{2}", r"(ab){1,3}", r"x?y?z?!", r"\d{1,3}(,\d{3}){0,2}", r"[a-z]{2,5}?",
        r"(\d\d?)?:", r"a{,3}b"],
    "anchors": [r"^abc$", r"^[0-9]{2}", r"[xyz]$", r"\A\d\Z", r"^a|b$"],
    "escapes": [r"\$\d+\.\d{2}", r"\(\d{3}\) \d{3}", r"a\.b\*c\?", r"\x41\u00e9", r"\[[^\]]{1,5}\]",
        r"C:\\\\[a-z]{1,5}", r"tab\tend"],
    "unicode": [r"[à-ü]{3}", r"日本(語)?", r"[α-ω]{2}", r"é|è|ê", r"[😀-😂]"],
    "practical": [
        r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])",
        r"([01]\d|2[0-3]):[0-5]\d",
        r"[a-z]{1,8}@[a-z]{1,8}\.(com|org|net)",
        r"((25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(25[0-5]|2[0-4]\d|1?\d?\d)",
        r"[+-]?\d{1,4}(\.\d{1,2})?([eE][+-]?\d)?",
        r"#[0-9a-f]{6}",
        r"v\d{1,2}\.\d{1,2}\.\d{1,2}(-(alpha|beta))?",
        r"The answer is (A|B|C|D)\.",
        r"[A-Z][a-z]{1,8} [A-Z]\. [A-Z][a-z]{1,8}",
        r"(?P<key>[a-z]{1,4})=(?P<value>\d{1,3})",
        r"(Question: [a-z ]{1,20}\? )?Answer: (yes|no)",
        r"",
    ],
}  # fmt: skip


def _balanced(text: str, inner: str) -> bool:
    while "()" in text.replace(inner, "", 1) or text.startswith("("):
        if not (text.startswith("(") and text.endswith(")")):
            return False
        text = text[1:-1]
    return text == inner


def _is_sum(text: str) -> bool:
    """Digits, + * and brackets, as Python reads them."""
    return re.fullmatch(r"[0-9+*()]+", text) is not None and eval(text, {"__builtins__": {}}) >= 0


def _is_list(text: str) -> bool:
    """Nested lists of one-digit numbers, without spaces."""
    return " " not in text and isinstance(json.loads(text), list) and re.search(r"\d\d", text) is None


def _is_mirror(text: str) -> bool:
    return re.fullmatch(r"[ab]*c[ab]*", text) is not None and text == text[::-1]


def _equal_counts(text: str) -> bool:
    found = re.fullmatch(r"(a*)(b*)", text)
    return found is not None and len(found[1]) == len(found[2]) > 0


def _is_tree(text: str) -> bool:
    """``(name child child)``, with at most two children."""
    shrunk = None
    while shrunk != text:
        shrunk, text = text, re.sub(r"\([a-z]( @){0,2}\)", "@", text)
    return text == "@"


GRAMMARS = [
    ("recursion", 'root ::= "(" root ")" | "x"', lambda text: _balanced(text, "x")),
    ("recursion", 'root ::= "a" root "b" | "ab"', _equal_counts),
    ("recursion", 'root ::= "a" root "a" | "b" root "b" | "c"', _is_mirror),
    ("recursion", 'root ::= "(" [a-z] (" " root){0,2} ")"', _is_tree),
    (
        "several rules",
        'root ::= term (("+" | "*") term){0,3}\nterm ::= [1-9] | "(" root ")"  # brackets',
        _is_sum,
    ),
    ("several rules", 'root ::= "[" (item ("," item){0,2})? "]"\nitem ::= [0-9] | root', _is_list),
    ("several rules", 'root ::= key "=" value\nkey ::= [a-z]{1,5}\nvalue ::= [0-9]{1,3}',
     re.compile(r"[a-z]{1,5}=[0-9]{1,3}").fullmatch),
    ("several rules",
     'root ::= greeting ", " name "!"\ngreeting ::= "Hello" | "Hi"\nname ::= [A-Z] [a-z]{1,6}',
     re.compile(r"(Hello|Hi), [A-Z][a-z]{1,6}!").fullmatch),
    ("ambiguity", 'root ::= a b\na ::= [a-z]{0,6}\nb ::= "x"', re.compile(r"[a-z]{0,6}x").fullmatch),
    ("ambiguity", 'root ::= ("a" | "ab") ("c" | "bc")', re.compile(r"(a|ab)(c|bc)").fullmatch),
    ("sets", 'root ::= [^a-z\\n"]{2,4} "\\n"', re.compile(r'[^a-z\n"]{2,4}\n').fullmatch),
    ("escapes", 'root ::= "\\"\\\\" [\\x41-\\x43] "\\u00e9"', re.compile(r'"\\[ABC]é').fullmatch),
    ("unicode", 'root ::= "é" [日-本]? "🎉"', re.compile("é[日-本]?🎉").fullmatch),
    ("empty parts", 'root ::= a? b* "."\na ::= "x"\nb ::= "yz"', re.compile(r"x?(yz)*\.").fullmatch),
]  # fmt: skip

CHOICES = [
    ["yes", "no"],
    ["positive", "negative", "neutral"],
    ["a", "ab", "abc"],
    ["Paris", "London", "New York City"],
    ["日本", "中国", "한국"],
    ['"quoted"', "back\\slash", "two\nlines"],
    ["one"],
]

_CALL = {
    "type": "structural_tag",
    "structures": [
        {"begin": "<fn=add>", "schema": _object("x", x=INT), "end": "</fn>"},
        {"begin": "<fn=ask>", "schema": WORD, "end": "</fn>"},
    ],
    "triggers": ["<fn="],
}


def _calls_are_valid(text: str) -> bool:
    rest = re.sub(r'<fn=add>\{"x": \d{1,2}\}</fn>|<fn=ask>"[a-z]{1,8}"</fn>', "", text)
    return "<fn=" not in rest


def _format(**fields) -> dict:
    return {"type": "structural_tag", "format": fields}


TAGS = [
    (_CALL, _calls_are_valid),
    (
        _format(type="triggered_tags", triggers=["<fn="], at_least_one=True, stop_after_first=True, tags=[
            {"type": "tag", "begin": "<fn=add>", "content": {"type": "regex", "pattern": "[0-9]{1,2}"},
                "end": "."}]),
        re.compile(r"(?s:((?!<fn=).)*)<fn=add>[0-9]{1,2}\.").fullmatch,
    ),
    (
        _format(type="sequence", elements=[
            {"type": "const_string", "value": "Answer: "},
            {"type": "or", "elements": [{"type": "json_schema", "json_schema": INT}, {"type": "regex",
                "pattern": "[a-z]{3}"}]},
            {"type": "optional", "content": {"type": "const_string", "value": "!"}}]),
        re.compile(r"Answer: (0|[1-9]\d?|[a-z]{3})!?").fullmatch,
    ),
    (
        _format(type="tag", begin="<t>", content={"type": "grammar",
            "grammar": 'root ::= "a" root "b" | "ab"'}, end="</t>"),
        lambda text: text[:3] == "<t>" and text[-4:] == "</t>" and _equal_counts(text[3:-4]),
    ),
    (
        _format(type="plus", content={"type": "tag", "begin": "<", "content": {"type": "regex",
            "pattern": "[ab]"}, "end": ">"}),
        re.compile(r"(<[ab]>)+").fullmatch,
    ),
    (
        _format(type="tags_with_separator", separator="; ", at_least_one=True, tags=[
            {"begin": "{", "content": {"type": "regex", "pattern": "[0-9]{1,2}"}, "end": "}"},
            {"begin": "(", "content": {"type": "json_schema", "json_schema": BOOL}, "end": ")"}]),
        re.compile(r"(\{\d{1,2}\}|\((true|false)\))(; (\{\d{1,2}\}|\((true|false)\)))*").fullmatch,
    ),
    (
        _format(type="sequence", elements=[
            {"type": "optional", "content": {"type": "tag", "begin": "<think>",
                "content": {"type": "any_text"}, "end": "</think>"}},
            {"type": "json_schema", "json_schema": _object("n", n=INT)}]),
        re.compile(r'(?s:<think>((?!</think>).)*</think>)?\{"n": \d{1,2}\}').fullmatch,
    ),
]  # fmt: skip

CASES = [
    *(_schema(feature, schema) for feature, schemas in SCHEMAS.items() for schema in schemas),
    *(_regex(feature, pattern) for feature, patterns in REGEXES.items() for pattern in patterns),
    *(Case(f, {"ebnf": grammar}, lambda text, ok=ok: bool(ok(text))) for f, grammar, ok in GRAMMARS),
    *(Case("choice", {"choice": texts}, texts.__contains__) for texts in CHOICES),
    *(
        Case("tags", {"structural_tag": json.dumps(tag)}, lambda text, ok=ok: bool(ok(text)))
        for tag, ok in TAGS
    ),
    Case("any JSON", {"json_schema": "$$ANY$$"}, lambda text: [json.loads(text)] != []),
]
