"""Constraints that were made to take for ever, or all memory: every kind, each in another way."""

from __future__ import annotations

import json

_OPEN = {"type": "string"}


def _nested(text: str, begin: str, end: str, count: int) -> str:
    return begin * count + text + end * count


def _doubling(keyword: str, depth: int) -> dict:
    """Each schema asks twice for the next one."""
    schemas = {f"d{i}": {keyword: [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(depth)}
    return {"$defs": schemas | {f"d{depth}": {"type": "integer"}}, "$ref": "#/$defs/d0"}


def _tags(count: int) -> dict:
    return {
        "type": "structural_tag",
        "triggers": [f"<t{i}>" for i in range(count)],
        "structures": [
            {"begin": f"<t{i}>", "schema": {"type": "string", "pattern": f"^x{i}[a-z]*$"}, "end": "</t>"}
            for i in range(count)
        ],
    }


def _format(given: dict) -> dict:
    return {"type": "structural_tag", "format": given}


def _deep_format(depth: int) -> dict:
    given: dict = {"type": "const_string", "value": "a"}
    for i in range(depth):
        given = {"type": ("optional", "star", "plus")[i % 3], "content": given}
    return _format(given)


_REGEXES = {
    "counts of counts": _nested("", "(", "){10000}", 4),
    "counts of a letter": _nested("a", "(", "){100}", 5),
    "the n-th letter from the end": "(a|b)*a(a|b){24}",
    "somewhere, forty times": "(.*a.*b.*){40}",
    "20,000 options": "|".join(f"{i}[a-z]+{i * 7919 % 10007}" for i in range(20_000)),
    "two long counts": "[a-z]{1,9999}[a-z0-9]{1,9999}",
    "options within options": _nested("a", "(", "?)?", 80),
    "many that may be empty": "(a?){5000}a{5000}",
    "a set of 10,000 ranges": "[" + "".join(chr(0x4E00 + 2 * i) for i in range(10_000)) + "]{50}",
    "overlapping options": "(" + "|".join("a" * i for i in range(1, 300)) + "){50}",
    "a megabyte": "ab" * 500_000,
    "groups without end": "(?:a)" * 100_000,
}
_GRAMMARS = {
    "repetitions of repetitions": 'root ::= (((("a"){1,10000}){1,10000}){1,10000}){1,10000}',
    "50,000 rules": "root ::= r0\n"
    + "".join(f"r{i} ::= [a-z] r{i + 1}\n" for i in range(50_000)) + 'r50000 ::= "a"',
    "many readings": "root ::= " + "a " * 30 + "\na ::= [a-z]*",
    "readings of readings": 'root ::= ("a" | "a" "a" | root2)*\nroot2 ::= ("a" | "aa")+',
    "groups in groups": "root ::= " + _nested('"a"', "(", ")?", 99),
    "20,000 options": "root ::= " + " | ".join(f'"{i * 7919}" [a-z]+' for i in range(20_000)),
    "rules of repetitions": "root ::= x{10000}\nx ::= y{10000}\ny ::= z{10000}\nz ::= [a-z]{10000}",
    "a long text": 'root ::= "' + "ab" * 300_000 + '"',
    "nothing, a thousand times": 'root ::= ("" | [a-z]*){1000}',
    "rules that are empty": "root ::= "
    + "e0 e1 " * 500
    + '"x"\ne0 ::= ""\ne1 ::= e0 e0 | "y"?',
    "a word, thousands of times": "root ::= w{1,9000}\nw ::= [a-z]+",
    "words without end": "root ::= w*\nw ::= [a-z]+",
    "a brace and many rules": "root ::= " + " ".join(f"r{i}*" for i in range(2000)) + "\n"
    + "".join(f"r{i} ::= [a-z]+\n" for i in range(2000)),
}  # fmt: skip
_SCHEMAS = {
    "allOf doubling": _doubling("allOf", 25),
    "anyOf doubling": _doubling("anyOf", 25),
    "oneOf doubling": _doubling("oneOf", 25),
    "products of anyOf": {"allOf": [{"anyOf": [{"minimum": i} for i in range(30)]}] * 4},
    "2,000 oneOf": {
        "oneOf": [
            {"type": "object", "properties": {"k": {"const": i}, "v": _OPEN}, "required": ["k"]}
            for i in range(2000)
        ]
    },
    "200,000 values": {"enum": list(range(200_000))},
    "20,000 properties": {"type": "object", "properties": {f"p{i}": {"minimum": 1} for i in range(20_000)}},
    "lists of lists of many": json.loads(
        _nested('{"type": "integer"}', '{"type": "array", "maxItems": 9999, "items": ', "}", 60)
    ),
    "a pattern that backtracks": {"enum": ["a" * 40 + "b"] * 2, "pattern": "^(a+)+$"},
    "names that backtrack": {
        "type": "object",
        "properties": {"a" * 40 + "b": True},
        "patternProperties": {"^(a|aa)+$": {"type": "integer"}},
    },
    "a pattern beside a length": {"type": "string", "pattern": "^(a|b)*a(a|b){16}$", "maxLength": 250},
    "2,000 patterns": {"anyOf": [{"type": "string", "pattern": f"^[a-z]*{i}[a-z]*$"} for i in range(2000)]},
    "many open objects": {
        "anyOf": [
            {
                "type": "object",
                "properties": {f"name_{i}_{j}": _OPEN for j in range(20)},
                "additionalProperties": True,
            }
            for i in range(100)
        ]
    },
    "long strings, many": {
        "type": "object",
        "properties": {f"p{i}": {"type": "string", "maxLength": 200 + i} for i in range(200)},
    },
    "references in a ring": {
        "$defs": {
            f"d{i}": {"type": "object", "properties": {"a": {"$ref": f"#/$defs/d{(i + 1) % 3000}"}}}
            for i in range(3000)
        },
        "$ref": "#/$defs/d0",
    },
}  # fmt: skip
_TAGS = {
    "3,000 tags": _tags(3000),
    "formats in formats": _deep_format(300),
    "a hostile schema": _format({"type": "json_schema", "json_schema": _SCHEMAS["allOf doubling"]}),
    "a hostile regex": _format({"type": "regex", "pattern": _REGEXES["the n-th letter from the end"]}),
    "a long trigger": {
        "type": "structural_tag",
        "triggers": ["<" + "ab" * 2000],
        "structures": [{"begin": "<" + "ab" * 2000, "schema": True, "end": "/"}],
    },
}
_CHOICES = {
    "100,000 texts": [f"{i * 7919 % 1000003} and {i}" for i in range(100_000)],
    "long texts": [("ab" * 40_000) + str(i) for i in range(20)],
}

HOSTILE: dict[str, tuple[str, str]] = {
    f"{kind}: {name}": (kind, value if isinstance(value, str) else json.dumps(value))
    for kind, cases in {
        "regex": _REGEXES,
        "ebnf": _GRAMMARS,
        "json_schema": _SCHEMAS,
        "structural_tag": _TAGS,
        "choice": _CHOICES,
    }.items()
    for name, value in cases.items()
}
