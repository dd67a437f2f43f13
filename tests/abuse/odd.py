"""Odd values, all drawn from ``rng``: texts, parameters, constraints, messages, things of the wrong type."""

from __future__ import annotations

import json
from random import Random
from typing import Any

TEXTS = [
    "",
    " ",
    "\x00",
    "Hello\x00World",
    "\ud800",
    "a\udfff b",
    "\u202eright to left\u202c",
    "שלום עולם",
    "e" + "\u0301" * 200,
    "👩‍👩‍👧‍👦" * 30,
    "<|im_end|><|im_start|>system\n",
    "</s><s>",
    "{{ 7 * 7 }}{% for x in y %}",
    "%s %d {0} \\u0000 \\",
    "\r\n\t\v\f\x1b[31m",
    "\ufeff\ufffe\uffff",
    "<tool_call>{",
    "[" * 3000,
    "a quick look at the pages",
]
JUNK: list[Any] = [
    None, True, -1, 0, 3.5, float("nan"), float("inf"), 2**70, "", "x", b"x", [], [[]], {}, {"a": 1}, (), {1},
    object(), print, [None], ["a", 1], [1, "a"], "9" * 100, -0.0, range(3), {"type": []}, [["user", "x"]],
]  # fmt: skip


def text(rng: Random) -> str:
    """A prompt; one in a hundred has a megabyte."""
    kind = rng.randrange(100)
    if kind == 0:
        return rng.choice(["a", "\u00e9", " ", "ab ", "\x00", "👍"]) * rng.choice([2**20, 2**18])
    if kind < 50:
        return rng.choice(TEXTS) + rng.choice(TEXTS)
    return "".join(
        chr(rng.choice([rng.randrange(128), rng.randrange(0x3000)])) for _ in range(rng.randrange(1, 200))
    )


def junk(rng: Random) -> Any:
    """Something of a wrong type, most likely."""
    return rng.choice(JUNK)


def params(rng: Random) -> dict[str, Any]:
    """Sampling parameters: sound ones, a quarter of them with fields that are not."""
    chosen: dict[str, Any] = {
        "max_new_tokens": rng.randrange(1, 24),
        "temperature": rng.choice([0, 0.7, 1.5]),
        "seed": rng.choice([None, 0, -1, 2**63 - 1]),
        "ignore_eos": rng.random() < 0.3,
        "n": rng.choice([1, 1, 1, 2, 3]),
    }
    if rng.random() < 0.3:
        chosen["stop"] = rng.choice(["a", ["e", "\x00"], TEXTS[8], ["x" * 1000]])
    if rng.random() < 0.25:
        wrong: dict[str, list[Any]] = {
            "n": [10**6, 10**9, 2**70, -1, 0],
            "max_new_tokens": [0, -1, 10**9, 2**70, None],
            "logit_bias": [{5: 100}, {"5": -100}, {10**9: 1}, dict.fromkeys(range(600), -100)],
            "stop": [["a"] * 10_000, "", [""], ["\ud800"]],
            "stop_token_ids": [list(range(600)), [10**12], [-1]],
            "temperature": [1e-30, 1e30, -1],
            "min_new_tokens": [5, 10**9],
            "top_k": [1, 10**9, 0],
            "top_p": [1e-12, 1.0, 0],
            "repetition_penalty": [1e-9, 2],
            "custom_params": [{"a": object()}, {}],
            "nonsense": [1],
        }
        name = rng.choice(list(wrong))
        chosen[name] = junk(rng) if rng.random() < 0.3 else rng.choice(wrong[name])
    return chosen


def nested(depth: int, inner: Any = True) -> Any:
    """A schema of objects in objects."""
    for _ in range(depth):
        inner = {"type": "object", "properties": {"a": inner}, "required": ["a"]}
    return inner


def constraint(rng: Random) -> dict[str, Any]:
    """A constraint that nobody asked for before; most are hostile in what they cost, or broken."""
    new = rng.randrange(10**9)
    word = f"w{new}"
    hostile: list[dict[str, Any]] = [
        {"regex": f"{word}(a{{1,1000}}){{1,1000}}"},
        {"regex": f"{word}(a|aa|b)*c(a|b){{20}}"},
        {"regex": f"(.*a){{12}}{word}"},
        {"regex": f"{word}a{{1000000}}"},
        {"regex": "(" * 5000 + word + ")" * 5000},
        {"regex": rng.choice(["(", "[a-", "(?=a)b", "\\1", "a**", "(?P<n>", "\ud800"]) + word},
        {"json_schema": nested(rng.choice([5, 2000]), {"const": word})},
        {"json_schema": {"enum": [f"{word}{i}" for i in range(rng.choice([3, 10_000]))]}},
        {"json_schema": {"type": "string", "pattern": f"^({word}|x+x+)+y$", "maxLength": 4096}},
        {"json_schema": {"type": "array", "minItems": 10**9, "items": {"const": word}}},
        {
            "json_schema": {
                "type": "array",
                "maxItems": 5000,
                "items": {"enum": [word, 1]},
                "uniqueItems": True,
            }
        },
        {"json_schema": {"$ref": "#", "title": word}},
        {"json_schema": {"properties": {f"{word}{i}": {"type": "integer"} for i in range(1000)}}},
        {
            "json_schema": {
                "allOf": [{"anyOf": [{"minLength": i}, {"maxLength": new % 50}]} for i in range(20)]
            }
        },
        {"json_schema": {"multipleOf": 1e-9, "minimum": -(10**40), "maximum": new}},
        {"json_schema": rng.choice(['{"type": ', "[]", "$$ANY$$", '{"type": "' + word + '"}', "[" * 10_000])},
        {"ebnf": f'root ::= root "{word}" | "a"'},
        {"ebnf": f'root ::= a{word}\na{word} ::= "x" (a{word} | b)* '},
        {
            "ebnf": "\n".join(f'r{i} ::= "{word}" r{i + 1}' for i in range(3000))
            + '\nr3000 ::= "x"\nroot ::= r0'
        },
        {"ebnf": f'root ::= ("{word}" | "a"{{1,100000}}){{1,100000}}'},
        {"structural_tag": {"type": "structural_tag", "format": {"type": "any_text"}, word: 1}},
        {
            "structural_tag": {
                "type": "structural_tag",
                "format": {"type": "regex", "pattern": word + "[ab]*"},
            }
        },
        {"choice": [f"{word}{i}" for i in range(rng.choice([2, 50_000]))]},
        {"choice": ["", word, "\ud800"]},
        {rng.choice(["regex", "ebnf", "json_schema", "choice", "structural_tag"]): junk(rng)},
        {"regex": word, "ebnf": word},
    ]
    return rng.choice(hostile)


def constraint_of_a_kind(rng: Random) -> dict[str, Any]:
    """A small sound constraint that nobody asked for before."""
    word = f"w{rng.randrange(10**12)}"
    schema = {"type": "object", "properties": {word: {"type": "integer"}, "b": {"enum": [word, None]}}}
    return rng.choice(
        [
            {"regex": f"({word}|[a-f]{{1,9}})+"},
            {"json_schema": json.dumps(schema)},
            {"json_schema": {"type": "array", "items": {"type": "string", "pattern": f"^{word}[0-9]*$"}}},
            {"ebnf": f'root ::= "{word}" (" and " root)?'},
            {"choice": [word, word[::-1], "neither"]},
            {
                "structural_tag": {
                    "type": "structural_tag",
                    "format": {"type": "regex", "pattern": word + "x*"},
                }
            },
        ]
    )


TOOL = {
    "type": "function",
    "function": {"name": "get", "parameters": {"properties": {"city": {"type": "string"}}}},
}


def messages(rng: Random) -> Any:
    """A conversation, sound or not."""
    call = {
        "id": "abcdefghi",
        "type": "function",
        "function": {"name": "get", "arguments": rng.choice(TEXTS + ["{}"])},
    }
    talk = [
        {"role": "user", "content": text(rng)},
        {"role": "user", "content": [{"type": "text", "text": text(rng)}], "name": rng.choice(TEXTS)},
        {"role": "assistant", "content": None, "refusal": text(rng), "annotations": []},
        {"role": "assistant", "content": "", "tool_calls": [call] * rng.choice([0, 1, 3])},
        {"role": "tool", "content": text(rng), "tool_call_id": "abcdefghi"},
        {"role": "developer", "content": text(rng)},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
        {"role": junk(rng), "content": junk(rng)},
        {"role": "user", rng.choice(["contents", "content", "tool_calls"]): junk(rng)},
    ]
    if rng.random() < 0.1:
        return junk(rng)
    sound = [{"role": "user", "content": "Hi"}]
    return rng.choice(
        [sound, sound + rng.choices(talk, k=3), rng.choices(talk, k=rng.randrange(6)), [sound, sound]]
    )


def chat_options(rng: Random) -> dict[str, Any]:
    """``tools``, ``tool_choice`` and ``response_format``, mostly sound."""
    options: dict[str, Any] = {}
    if rng.random() < 0.5:
        options["tools"] = rng.choice([[TOOL], [TOOL], [], [TOOL, TOOL], junk(rng)])
        options["tool_choice"] = rng.choice(
            [None, "auto", "required", "get", {"function": {"name": "get"}}, junk(rng)]
        )
    elif rng.random() < 0.5:
        asked = rng.choice([{"schema": nested(2)}, constraint(rng), junk(rng)])
        options["response_format"] = {"type": "json_schema", "json_schema": asked}
    return options
