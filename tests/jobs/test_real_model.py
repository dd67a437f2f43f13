"""Jobs on the real small model."""

from __future__ import annotations

import dataclasses
import re

import pytest

GREEDY = {"temperature": 0, "max_new_tokens": 12}


def test_a_job_says_what_generate_says(job, real_engine):
    prompts = ["The capital of France is", "Water boils at", "1, 2, 3, 4,", "Once upon a time"]
    expected = [out.text for out in real_engine.generate(prompts, GREEDY)]
    summary, records, _ = job(
        [{"id": i, "prompt": p} for i, p in enumerate(prompts)], engine=real_engine, sampling_params=GREEDY
    )
    assert {r["id"]: r["text"] for r in records} == dict(enumerate(expected))
    assert summary.completion_tokens == sum(r["usage"]["completion_tokens"] for r in records) == 48
    assert summary.cached_tokens > 0  # generate left these prompts in the cache
    # the caller's engine is still open
    assert real_engine.generate(prompts[0], GREEDY).text == expected[0]


def test_chat_uses_the_models_template(job, real_engine):
    messages = [{"role": "user", "content": "What is the capital of Italy?"}]
    body = {"messages": messages, "temperature": 0, "max_tokens": 12}
    lines = [
        {"messages": messages, "sampling_params": GREEDY},
        {"custom_id": "x", "url": "/v1/chat/completions", "body": body},
    ]
    _, records, _ = job(lines, engine=real_engine, order="input")
    text = real_engine.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = real_engine.tokenizer.encode(text, add_special_tokens=False)
    expected = real_engine.generate(input_ids=ids, sampling_params=GREEDY)
    by_id = {r.get("custom_id"): r for r in records}
    assert by_id[None]["text"] == expected.text
    assert by_id["x"]["response"]["body"]["choices"][0]["message"]["content"] == expected.text
    assert by_id[None]["usage"]["prompt_tokens"] == len(ids)


def test_sampled_answers_do_not_depend_on_the_run_order_or_batch(job, real_engine):
    lines = [{"id": i, "prompt": "Once upon a time"} for i in range(12)]
    sampling = {"seed": 3, "max_new_tokens": 8}
    _, together, _ = job(lines, engine=real_engine, sampling_params=sampling)
    job.output.unlink()
    job(lines[7:], engine=real_engine, sampling_params=sampling, max_in_flight=1)
    summary, apart, _ = job(lines[::-1], engine=real_engine, sampling_params=sampling, order="input")
    assert summary.resumed == 5
    texts = {r["id"]: r["text"] for r in together}
    assert {r["id"]: r["text"] for r in apart} == texts
    assert len(set(texts.values())) > 6


def test_logprobs_are_those_of_generate(job, real_engine):
    line = {"prompt": "The sky is", "sampling_params": GREEDY | {"max_new_tokens": 3}}
    _, records, _ = job(
        [
            line | {"return_logprob": True, "top_logprobs_num": 2},
            {
                "custom_id": "x",
                "url": "/v1/completions",
                "body": {
                    "prompt": "The sky is",
                    "temperature": 0,
                    "max_tokens": 3,
                    "logprobs": 2,
                    "echo": True,
                },
            },
        ],
        engine=real_engine,
        order="input",
    )
    simple, openai = sorted(records, key=lambda r: "custom_id" in r)
    tokens = simple["logprobs"]["output_token_logprobs"]
    assert len(tokens) == 3
    assert [t[:2] for t in tokens] == [top[0][:2] for top in simple["logprobs"]["output_top_logprobs"]]
    choice = openai["response"]["body"]["choices"][0]
    assert "".join(choice["logprobs"]["tokens"]) == choice["text"]
    assert choice["logprobs"]["token_logprobs"][0] is None
    assert choice["logprobs"]["token_logprobs"][-3:] == pytest.approx([t[0] for t in tokens], abs=1e-4)


def test_constrained_lines(job, real_engine):
    """Every kind in lines of all three forms; one that cannot be compiled is one error record."""
    schema = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 99, "minimum": 0}}}
    schema["required"] = ["n"]
    tag = {"type": "structural_tag", "format": {"type": "const_string", "value": "so"}}
    constraints = {
        "json_schema": schema,
        "regex": "[ab]{3}",
        "ebnf": 'root ::= "c" | "d"',
        "choice": ["e", "f"],
        "structural_tag": tag,
    }
    meant = {"json_schema": r'\{"n": \d\d?\}', "regex": "[ab]{3}", "ebnf": "c|d", "choice": "e|f"}
    meant["structural_tag"] = "so"
    messages = [{"role": "user", "content": "What is the capital of Italy?"}]
    lines = []
    for kind, value in constraints.items():
        lines.append({"id": kind, "prompt": "Answer:", "sampling_params": {kind: value}})
        for url, body in [
            ("completions", {"prompt": "Answer:"}),
            ("chat/completions", {"messages": messages}),
        ]:
            lines.append({"custom_id": f"{kind} {url}", "url": f"/v1/{url}", "body": body | {kind: value}})
    answer = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    body = {"messages": messages, "response_format": answer}
    lines.append({"custom_id": "json_schema format", "url": "/v1/chat/completions", "body": body})
    lines.append({"id": "wrong", "prompt": "Answer:", "sampling_params": {"regex": "(a"}})
    summary, records, _ = job(lines, engine=real_engine)
    assert summary.errors == 1
    for record in records:
        name = record.get("id") if "text" in record else record.get("custom_id") or record["id"]
        if name == "wrong":
            assert "regex" in record["error"]["message"]
        elif "text" in record:
            assert re.fullmatch(meant[name], record["text"]), record
        else:
            [choice] = record["response"]["body"]["choices"]
            text = choice["text"] if "text" in choice else choice["message"]["content"]
            assert re.fullmatch(meant[name.split()[0]], text), record
            assert choice["finish_reason"] == "stop"


def test_lines_refused_by_the_engine_do_not_stop_the_others(job, real_engine):
    lines = [
        {"id": "empty", "prompt": ""},
        {"id": "long", "prompt": "word " * 9000},
        {"id": "ids", "prompt": [10**9]},
        {"id": "logprobs", "prompt": "x", "return_logprob": True, "logprob_start_len": 99},
        {"id": "bias", "prompt": "x", "sampling_params": {"logit_bias": {"99999999": 1}}},
        {"id": "fine", "prompt": "x"},
    ]
    summary, records, _ = job(lines, engine=real_engine, sampling_params=GREEDY)
    codes = {r["id"]: r["error"] and r["error"]["code"] for r in records}
    assert codes == {
        "empty": "invalid_request",
        "long": "request_too_long",
        "ids": "invalid_request",
        "logprobs": "invalid_request",
        "bias": "invalid_parameter",
        "fine": None,
    }
    assert summary.errors == 5


def test_summary_counts_one_run(job, real_engine):
    lines = [{"id": i, "prompt": "Hello"} for i in range(3)]
    first, _, _ = job(lines[:2], engine=real_engine, sampling_params=GREEDY)
    second, _, _ = job(lines, engine=real_engine, sampling_params=GREEDY)
    assert dataclasses.replace(second, seconds=0.0) == dataclasses.replace(
        first,
        total=3,
        resumed=2,
        completed=1,
        seconds=0.0,
        prompt_tokens=first.prompt_tokens // 2,
        completion_tokens=first.completion_tokens // 2,
        cached_tokens=second.prompt_tokens - 1,
    )
