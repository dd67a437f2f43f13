"""What each keyword of JSON Schema lets through, on both backends; what is right is written down here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rootlet.errors import GrammarError
from rootlet.grammar.constraint import Constraint
from rootlet.grammar.llguidance_backend import LlguidanceBackend
from rootlet.grammar.xgrammar_backend import XGrammarBackend

from .walks import END, VOCABULARY

BACKENDS = [XGrammarBackend(lambda: VOCABULARY), LlguidanceBackend(lambda: VOCABULARY)]
CASES = [
    json.loads(line)
    for line in Path(__file__).with_name("schema_keywords.jsonl").read_text(encoding="utf-8").splitlines()
]


def text(**limits) -> dict:
    return {"type": "string", **limits}


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: type(backend).__name__)
@pytest.mark.parametrize("case", CASES, ids=lambda case: json.dumps(case["schema"])[:80])
def test_what_a_keyword_lets_through(case, backend):
    grammar = backend.compile(Constraint("json_schema", json.dumps(case["schema"])))

    def passes(value) -> bool:
        matcher = grammar.matcher()
        document = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f").encode()
        return all(map(matcher.accept, document)) and matcher.accept(END)

    assert [value for value in case["valid"] if not passes(value)] == []
    assert [value for value in case["invalid"] if passes(value)] == []


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
