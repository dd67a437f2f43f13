"""What constrained outputs of a real model must be, on any device."""

from __future__ import annotations

import re

from constraint_corpus import CASES

import rootlet

FORM = {
    "type": "object",
    "properties": {
        "customer_identification_number": {"type": "integer", "minimum": 1, "maximum": 999},
        "requires_signature_on_delivery": {"type": "boolean"},
        "additional_comments_for_courier": {"enum": ["none", "ring twice"]},
    },
    "required": [
        "customer_identification_number",
        "requires_signature_on_delivery",
        "additional_comments_for_courier",
    ],
}
LIST = 'root ::= item (", " item)*\nitem ::= [a-z]+ | "(" root ")"'
TAG = {
    "type": "structural_tag",
    "structures": [{"begin": "<n>", "schema": {"type": "integer", "minimum": 0}, "end": "</n>"}],
    "triggers": ["<n>"],
}
KINDS = [
    {"regex": "[ab]{4,12}"},
    {},
    {"choice": ["one hundred", "two"]},
    {"json_schema": FORM},
    {"ebnf": LIST},
    {"structural_tag": TAG},
]


def check_corpus(engine: rootlet.Engine) -> None:
    """Whatever ends by itself meets its constraint, at temperatures 0 and 1; few are cut by their length."""
    assert len(CASES) >= 150
    for temperature in (0, 1):
        params = [
            {"temperature": temperature, "seed": 5, "max_new_tokens": 40, **case.params} for case in CASES
        ]
        outputs = engine.generate(["Answer:"] * len(CASES), params)
        cut = 0
        for case, output in zip(CASES, outputs):
            if output.finish_reason["type"] == "length":
                cut += 1
            else:
                assert output.finish_reason["type"] == "stop", (case.name, output)
                assert case.accepts(output.text), (case.name, output.text)
        assert cut <= len(CASES) // 8


def check_rows_apart(engine: rootlet.Engine) -> None:
    """64 requests of alternating kinds and none keep to their own; those looked at get what they get alone.

    The engine computes a row the same in any company.
    """
    prompts = [f"Number {i}:" for i in range(64)]
    kinds = [KINDS[i % len(KINDS)] for i in range(64)]
    params = [
        {"temperature": i // 6 % 2, "seed": i, "max_new_tokens": 12 + i % 5, **kind}
        for i, kind in enumerate(kinds)
    ]
    outputs = engine.generate(prompts, params)
    for kind, output in zip(kinds, outputs):
        assert _may_begin_with(kind, output.text), (kind, output.text)
    for i in range(0, 64, 5):  # of every kind
        assert engine.generate(prompts[i], params[i]).token_ids == outputs[i].token_ids
    assert len({output.text for kind, output in zip(kinds, outputs) if not kind}) > 1


def _may_begin_with(kind: dict, text: str) -> bool:
    """Whether an output of this kind can begin so."""
    if "regex" in kind:
        return re.fullmatch("[ab]{,12}", text) is not None
    if "choice" in kind:
        return text in kind["choice"]
    if "json_schema" in kind:
        start = '{"customer_identification_number": '
        return text[: len(start)] == start[: len(text)]
    if "ebnf" in kind:
        return re.fullmatch("[a-z(), ]+", text) is not None
    if "structural_tag" in kind:
        return all(re.match(r"\d*($|<)", after) for after in text.split("<n>")[1:])
    return True
