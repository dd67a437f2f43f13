"""OpenAI batch lines: every field is used or refused by name, and records have OpenAI's shape."""

from __future__ import annotations

import dataclasses
import json

import pytest

from rootlet.engine.chat.render import ChatRenderer
from rootlet.grammar.tool_calls import get_format

from .fake_engine import FakeEngine

CHAT_URL, COMPLETION_URL = "/v1/chat/completions", "/v1/completions"
MESSAGES = [{"role": "user", "content": "hi"}]


def chat(custom_id="x", **body):
    body = {"messages": MESSAGES} | body
    return {"custom_id": custom_id, "method": "POST", "url": CHAT_URL, "body": body}


def completion(custom_id="x", **body):
    return {"custom_id": custom_id, "method": "POST", "url": COMPLETION_URL, "body": {"prompt": "ab"} | body}


def test_a_chat_record(job):
    _, [record], _ = job([chat(model="some-model", n=2)])
    text, other = (choice["message"]["content"] for choice in record["response"]["body"]["choices"])
    assert text != other
    assert record["id"].startswith("batch_req_")
    assert record["response"]["body"].pop("created") > 1_700_000_000
    key = record["id"].removeprefix("batch_req_")
    ending = {"finish_reason": "length", "matched_stop": None}
    assert record == {
        "id": record["id"],
        "custom_id": "x",
        "response": {
            "status_code": 200,
            "request_id": "req_" + key,
            "body": {
                "id": "chatcmpl-" + key,
                "object": "chat.completion",
                "model": "some-model",
                "choices": [
                    {"index": i, "message": {"role": "assistant", "content": t}, "logprobs": None} | ending
                    for i, t in enumerate((text, other))
                ],
                "usage": {
                    "prompt_tokens": 20,
                    "completion_tokens": 10,
                    "total_tokens": 30,
                    "prompt_tokens_details": {"cached_tokens": 0},
                },
                "system_fingerprint": None,
            },
        },
        "error": None,
    }


def test_a_line_without_custom_id_is_known_by_its_place(job):
    line = chat()
    del line["custom_id"]
    _, records, _ = job([line, line])
    assert [(r["custom_id"], r["index"], r["error"]) for r in records] == [(None, 0, None), (None, 1, None)]
    summary, _, _ = job([line, line])
    assert summary.resumed == 2


@pytest.mark.parametrize(
    ("prompt", "sent"),
    [
        ("ab", ["ab", "ab"]),
        ([97, 98], ["ab", "ab"]),
        (["a", "bc"], ["a", "a", "bc", "bc"]),
        ([[97], [98, 99]], ["a", "a", "bc", "bc"]),
    ],
)
def test_the_four_forms_of_a_completion_prompt(job, prompt, sent):
    _, [record], engine = job([completion(prompt=prompt, n=2, echo=True)])
    assert engine.prompts == sent
    choices = record["response"]["body"]["choices"]
    assert [c["index"] for c in choices] == list(range(len(sent)))
    assert [c["text"].partition("<")[0] for c in choices] == sent
    assert record["response"]["body"]["usage"]["prompt_tokens"] == len("".join(sent)) // 2
    assert record["response"]["body"]["object"] == "text_completion"


def test_every_sampling_field_arrives(job):
    shared = {
        "temperature": 0.5,
        "top_p": 0.75,
        "top_k": 9,
        "min_p": 0.125,
        "seed": 11,
        "stop": ["a", "b"],
        "stop_token_ids": [5],
        "frequency_penalty": 0.25,
        "presence_penalty": -0.25,
        "repetition_penalty": 1.5,
        "logit_bias": {"7": -100},
        "ignore_eos": True,
        "no_stop_trim": True,
        "skip_special_tokens": False,
        "min_tokens": 2,
        "max_tokens": 33,
        "user": "somebody",
        "stream": False,
        "top_logprobs": None,
        "tools": None,
    }
    lines = [chat("a", **shared), completion("b", **{k: v for k, v in shared.items() if k != "top_logprobs"})]
    lines.append(chat("c", max_completion_tokens=44))
    _, _, engine = job(lines, order="input")
    for params in engine.params[:2]:
        assert params.stop == ("a", "b")
        assert params.stop_token_ids == (5,)
        assert params.logit_bias == {7: -100.0}
        assert (params.min_new_tokens, params.max_new_tokens) == (2, 33)
        assert params.ignore_eos
        assert params.no_stop_trim
        assert not params.skip_special_tokens
        for name in ("temperature", "top_p", "top_k", "min_p", "seed", "repetition_penalty"):
            assert getattr(params, name) == shared[name]
        for name in ("frequency_penalty", "presence_penalty"):
            assert getattr(params, name) == shared[name]
    assert engine.params[2].max_new_tokens == 44


def test_defaults_of_the_two_endpoints(job):
    _, _, engine = job([chat("a"), completion("b")], order="input")
    assert [(p.temperature, p.max_new_tokens) for p in engine.params] == [(0.7, None), (1.0, 16)]


@pytest.mark.parametrize(
    ("line", "named"),
    [
        (chat(temprature=1), "'temprature'"),
        (chat(stream=True), "stream"),
        (chat(tools=[{}]), "tools"),
        (chat(tool_choice="auto"), "tool_choice"),
        (chat(reasoning_effort="high"), "reasoning_effort"),
        (chat(top_logprobs=2), "top_logprobs"),
        (chat(logprobs=2), "logprobs must be true or false"),
        (chat(max_tokens=5, max_completion_tokens=6), "max_completion_tokens"),
        (chat(max_tokens="5"), "max_tokens must be an integer"),
        (chat(temperature=-1), "temperature"),
        (chat(logit_bias={"x": 1}), "logit_bias"),
        (chat(stop=5), "stop"),
        (chat(n=0), "n must be"),
        (chat(n=100_000), "n must be"),
        (chat(messages=None), "messages"),
        (chat(messages=[MESSAGES[0] | {"name": 5}]), "messages[0].name"),
        (chat(messages=[MESSAGES[0] | {"audio": {"id": "a"}}]), "messages[0].audio"),
        (chat(parallel_tool_calls="no"), "parallel_tool_calls must be true or false"),
        (chat(store=True), "store is not supported"),
        (chat(service_tier="flex"), "service_tier is not supported"),
        (chat(modalities=["text", "audio"]), "modalities is not supported"),
        (chat(functions=[{"name": "f"}]), "functions is not supported"),
        (chat(stream_options={"include_usage": True}), "stream_options"),
        (chat(user=7), "user must be a string"),
        (chat(metadata={"a": 1}), "metadata['a'] must be a string"),
        (chat(seed=2**63), "seed must be in"),
        (chat(response_format={"type": "xml"}), "response_format.type"),
        (chat(response_format={"type": "json_schema"}), "response_format.json_schema.schema"),
        (chat(regex="a", ebnf="b"), "Only one of regex"),
        (completion(suffix="x"), "suffix"),
        (completion(best_of=3), "best_of"),
        (completion(logprobs=True), "logprobs"),
        (completion(prompt=None), "prompt"),
        (completion(prompt=[["a"]]), "prompt[0]"),
        (completion(echo="yes"), "echo"),
        (completion(lora_path="x"), "lora_path"),
        (completion(messages=MESSAGES), "'messages'"),
        (chat() | {"method": "GET"}, "method"),
        (chat() | {"url": "/v1/embeddings"}, "url"),
        (chat() | {"body": []}, "body"),
        (chat() | {"extra": 1}, "'extra'"),
        (chat(custom_id=5), "custom_id"),
    ],
)
def test_what_is_wrong_is_named_in_the_error_record(job, line, named):
    summary, [record], engine = job([line])
    assert named in record["error"]["message"]
    assert record["response"] is None
    assert record["custom_id"] == (line["custom_id"] if line["custom_id"] == "x" else None)
    assert engine.prompts == []
    assert summary.errors == 1


def test_structured_output_becomes_a_schema(job):
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    lines = [
        chat("a", response_format={"type": "text"}),
        chat("b", response_format={"type": "json_object"}),
        chat("c", response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}),
        completion("d", json_schema='{"type": "array"}'),
    ]
    _, _, engine = job(lines, order="input")
    assert [p.json_schema for p in engine.params] == [
        None,
        '{"type": "object"}',
        '{"type": "object", "properties": {"a": {"type": "integer"}}}',
        '{"type": "array"}',
    ]


def test_chat_logprobs(job):
    lines = [
        chat("plain", logprobs=True, max_tokens=2),
        chat("top", logprobs=True, top_logprobs=2, max_tokens=1),
    ]
    _, records, _ = job(lines, order="input")
    plain, top = (r["response"]["body"]["choices"][0]["logprobs"]["content"] for r in records)
    assert plain == [
        {"token": "a", "logprob": -97.0, "bytes": [97], "top_logprobs": []},
        {"token": "b", "logprob": -98.0, "bytes": [98], "top_logprobs": []},
    ]
    # JSON has no infinity
    assert [t["logprob"] for t in top[0]["top_logprobs"]] == [-97.0, -9999.0]


def test_completion_logprobs_with_echo(job):
    lines = [
        completion("plain", logprobs=0, max_tokens=2),
        completion("echo", logprobs=1, echo=True, max_tokens=1),
    ]
    _, records, _ = job(lines, order="input")
    plain, echo = (r["response"]["body"]["choices"][0]["logprobs"] for r in records)
    assert plain == {
        "tokens": ["a", "b"],
        "token_logprobs": [-97.0, -98.0],
        "top_logprobs": None,
        "text_offset": [0, 1],
    }
    assert echo["tokens"] == ["a", "b", "a"]
    assert echo["token_logprobs"] == [None, -98.0, -97.0]
    assert echo["top_logprobs"] == [None, {"b": -98.0}, {"a": -97.0, "A": -9999.0}]
    assert echo["text_offset"] == [0, 1, 2]


def test_simple_logprobs(job):
    line = {"prompt": "ab", "return_logprob": True, "logprob_start_len": 0, "top_logprobs_num": 1}
    _, [record], _ = job([line | {"sampling_params": {"max_new_tokens": 1}}])
    assert record["logprobs"] == {
        "input_token_logprobs": [[None, 97, None], [-98.0, 98, None]],
        "output_token_logprobs": [[-97.0, 97, None]],
        "input_top_logprobs": [None, [[-98.0, 98, None]]],
        "output_top_logprobs": [[[-97.0, 97, None], [-9999.0, 65, None]]],
    }


WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
CALL = '{"name": "get_weather", "parameters": {"city": "Paris"}}'


class CallingEngine(FakeEngine):
    """Says the same to everybody."""

    def __init__(self, text):
        super().__init__(tool_call_parser="llama3")
        self.text = text
        self.tokenizer.chat_template = "{{ messages }} {{ tools }} {{ tool_calls }}"
        self.chat_renderer = ChatRenderer(self.tokenizer, None, get_format("llama3"))

    def _answer(self, ids, params, logprobs):
        ended = {"text": self.text, "finish_reason": {"type": "stop", "matched": 0}}
        return dataclasses.replace(super()._answer(ids, params, logprobs), **ended)


def test_tool_calls(job):
    lines = [
        chat("auto", tools=[WEATHER]),
        chat("hidden", tools=[WEATHER], tool_choice="none"),
        chat("forced", tools=[WEATHER], tool_choice="required"),
        chat("wrong", tools=[WEATHER], tool_choice="always"),
    ]
    text = f"Well.<|python_tag|>{CALL}; {CALL}"
    _, records, engine = job(lines, engine=CallingEngine(text))
    by_id = {record["custom_id"]: record for record in records}
    assert "tool_choice must be" in by_id.pop("wrong")["error"]["message"]
    choices = {name: record["response"]["body"]["choices"][0] for name, record in by_id.items()}
    assert choices["hidden"]["message"] == {"role": "assistant", "content": text}
    assert choices["hidden"]["finish_reason"] == "stop"
    for name in ("auto", "forced"):
        message = choices[name]["message"]
        assert message["content"] == "Well."
        assert [call["function"] for call in message["tool_calls"]] == [
            {"name": "get_weather", "arguments": '{"city": "Paris"}'}
        ] * 2
        assert choices[name]["finish_reason"] == "tool_calls"
    assert sorted(bool(params.structural_tag) for params in engine.params) == [False, False, True]
    asked = MESSAGES + [choices["auto"]["message"]]
    results = [{"role": "tool", "tool_call_id": c["id"], "content": "22"} for c in asked[1]["tool_calls"]]
    job.output.unlink()
    _, [record], _ = job([chat("next", messages=asked + results, tools=[WEATHER])], engine=engine)
    assert record["error"] is None


def test_a_lone_surrogate_anywhere_is_refused(job):
    tool = {"type": "function", "function": {"name": "f", "description": "\ud800"}}
    called = {
        "role": "assistant",
        "tool_calls": [{"function": {"name": "f", "arguments": '{"a": "\\ud800"}'}}],
    }
    lines = [
        chat("a", tools=[tool]),
        chat("b", messages=[*MESSAGES, called, {"role": "tool", "content": ""}]),
    ]
    _, records, _ = job(lines, engine=SurrogateEngine("x"))
    assert all("lone surrogate" in record["error"]["message"] for record in records)


class SurrogateEngine(CallingEngine):
    """Shows the whole conversation to the model."""

    def __init__(self, text):
        super().__init__(text)
        self.tokenizer.apply_chat_template = lambda messages, tools=(), **_: json.dumps(
            [messages, tools], ensure_ascii=False
        )


def test_fields_that_change_no_answer(job):
    harmless = {
        "user": "u",
        "safety_identifier": "s",
        "prompt_cache_key": "k",
        "prompt_cache_retention": "24h",
        "metadata": {"team": "a"},
        "store": False,
        "service_tier": "auto",
        "modalities": ["text"],
        "verbosity": "medium",
        "functions": [],
        "parallel_tool_calls": True,
        "top_logprobs": 0,
        "logit_bias": {},
        "stop": None,
        "n": None,
    }
    _, records, _ = job([chat("plain", seed=-1), chat("all", seed=-1, **harmless)], order="input")
    plain, full = (record["response"]["body"] for record in records)
    assert full.pop("metadata") == {"team": "a"}
    assert full["choices"] == plain["choices"]


class CachingEngine(FakeEngine):
    """Finds all of a prompt but its last token in the cache, but for the first two samples."""

    def _answer(self, ids, params, logprobs):
        cached = 0 if len(self.prompts) < 2 else len(ids) - 1
        return dataclasses.replace(super()._answer(ids, params, logprobs), cached_tokens=cached)


def test_a_prompt_and_what_was_cached_of_it_count_once(job):
    _, [record], _ = job([chat(n=4)], engine=CachingEngine())
    usage = record["response"]["body"]["usage"]
    assert (usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]) == (20, 0)
    job.output.unlink()
    _, [record], _ = job([completion(prompt=["abc", "abc"], n=2)], engine=CachingEngine())
    usage = record["response"]["body"]["usage"]
    assert (usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]) == (6, 2)
    job.output.unlink()
    _, [record], _ = job([{"prompt": "abc", "sampling_params": {"n": 4}}], engine=CachingEngine())
    assert record["usage"] == {"prompt_tokens": 3, "completion_tokens": 20, "cached_tokens": 0}
