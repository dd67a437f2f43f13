"""``engine.chat``: replies, streams, batches, prefill, tools and reasoning, on the real model."""

from __future__ import annotations

import asyncio
import itertools
import json

import jsonschema
import pytest
import xgrammar
from hypothesis import given, settings
from hypothesis import strategies as st
from xgrammar.testing import _is_grammar_accept_string as accepts

import rootlet
from rootlet.engine.chat.conversation import Conversation
from rootlet.engine.chat.options import ChatOptions
from rootlet.engine.chat.outputs import ToolCall
from rootlet.engine.chat.render import ChatRenderer
from rootlet.engine.chat.reply import ReplyReader
from rootlet.engine.replies.outputs import RequestOutput
from rootlet.errors import ConfigError, InvalidRequestError
from rootlet.grammar.constraint import Constraint
from rootlet.grammar.notation import as_ebnf
from rootlet.grammar.reasoning import get_reasoning_format
from rootlet.grammar.tool_calls import get_format
from rootlet.models.tokenizer import load_tokenizer

# SmolLM2's own form, with the tools and calls that its template leaves out
TEMPLATE = """\
<|im_start|>system
{%- for tool in tools or [] %}
{{ tool | tojson }}
{%- endfor %}<|im_end|>
{% for message in messages -%}
<|im_start|>{{ message.role }}
{{ message.content }}
{%- for call in message.tool_calls %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor %}<|im_end|>
{% endfor %}
{{- '<|im_start|>assistant\n' }}"""
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
ALARM = {
    "type": "function",
    "function": {
        "name": "set_alarm",
        "parameters": {
            "type": "object",
            "properties": {
                "hour": {"type": "integer", "minimum": 0, "maximum": 23},
                "label": {"type": "string", "maxLength": 8},
                "repeat": {"enum": ["never", "daily"]},
            },
            "required": ["hour", "label", "repeat"],
        },
    },
}
NAMED = {"type": "function", "function": {"name": "set_alarm"}}
STRICT = {"type": "function", "function": {"name": "get_time", "strict": True}}
TIME = {"type": "function", "function": {"name": "get_time"}}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
COUNT = [{"role": "user", "content": "Count to five."}]
GREEDY = {"temperature": 0, "max_new_tokens": 16}


@pytest.fixture(scope="module")
def engine(smollm2_gguf):
    options = {"dtype": "float32", "max_total_tokens": 4096, "chat_template": TEMPLATE}
    with rootlet.Engine(str(smollm2_gguf), reasoning_parser="qwen3", **options) as engine:
        yield engine


class Say:
    """Makes a model say a text and stop: a logit processor for one request."""

    def __init__(self, engine, text):
        self._ids = [*engine.tokenizer.encode(text), engine.tokenizer.eos_token_id]
        self._steps = itertools.count()

    def __call__(self, logits, custom_param_list):
        logits[:] = -float("inf")
        logits[:, self._ids[next(self._steps)]] = 0
        return logits


def joined(deltas):
    """A stream put together: what its pieces say, and the reply it ends with."""
    content = reasoning = ""
    calls = {}
    for delta in deltas:
        content += delta.content
        reasoning += delta.reasoning_content
        for piece in delta.tool_calls:
            if piece.withdrawn:
                calls.pop(piece.index, None)
                continue
            seen = calls.setdefault(piece.index, [piece.id, piece.name, ""])
            seen[2] += piece.arguments
    return content, reasoning, [tuple(call) for call in calls.values()], deltas[-1].output


def check_stream(deltas):
    """The pieces say what the reply says."""
    content, reasoning, calls, reply = joined(deltas)
    assert all(delta.finish_reason is None and delta.output is None for delta in deltas[:-1])
    assert deltas[-1].finish_reason == reply.finish_reason
    assert content == (reply.content or "")
    assert reasoning == (reply.reasoning_content or "")
    assert [call[:2] for call in calls] == [(call.id, call.name) for call in reply.tool_calls]
    assert [json.loads(call[2]) for call in calls] == [json.loads(c.arguments) for c in reply.tool_calls]
    return reply


# ---- plain chats ---------------------------------------------------------------------------------------


def test_a_reply_is_what_generate_says_to_the_rendered_prompt(engine):
    reply = engine.chat(QUESTION, GREEDY)
    prompt = engine.tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    plain = engine.generate(prompt, GREEDY)
    assert reply.content == plain.text
    assert "Paris" in reply.content
    assert (reply.tool_calls, reply.reasoning_content, reply.finish_reason) == ((), None, "stop")
    assert reply.prompt_tokens == plain.prompt_tokens
    assert reply.completion_tokens == plain.completion_tokens == len(reply.output.token_ids)
    assert reply.message == {"role": "assistant", "content": plain.text}
    again = engine.chat([*QUESTION, reply.message, *COUNT], GREEDY)
    assert again.cached_tokens >= reply.prompt_tokens
    assert again.finish_reason == "length"


def test_streams_and_event_loops_say_the_same(engine):
    replies = engine.chat([QUESTION, COUNT], GREEDY)
    deltas = list(engine.chat([QUESTION, COUNT], GREEDY, stream=True))
    for i, reply in enumerate(replies):
        mine = [delta for delta in deltas if delta.index == i]
        assert len(mine) > 3
        assert check_stream(mine).message == reply.message

    async def main():
        stream = await engine.async_chat(COUNT, GREEDY, stream=True)
        return await engine.async_chat([QUESTION, COUNT], GREEDY), [delta async for delta in stream]

    awaited, streamed = asyncio.run(main())
    assert [reply.message for reply in awaited] == [reply.message for reply in replies]
    assert check_stream(streamed).message == replies[1].message


def test_batches_and_samples(engine):
    params = [{"seed": 1, "n": 2, "max_new_tokens": 4}, {"seed": 2, "n": 2, "max_new_tokens": 4}]
    replies = engine.chat([QUESTION, COUNT], params, return_logprob=True, rid=["a", "b"])
    assert [reply.index for reply in replies] == [0, 1, 2, 3]
    assert [reply.output.rid for reply in replies] == ["a-0", "a-1", "b-0", "b-1"]
    assert all(len(reply.output.output_token_logprobs) == reply.completion_tokens for reply in replies)
    alone = engine.chat(COUNT, params[1])
    assert [reply.content for reply in alone] == [reply.content for reply in replies[2:]]
    assert isinstance(engine.chat([QUESTION], GREEDY), list)


def test_a_reply_that_was_begun_is_continued(engine):
    begun = [*QUESTION, {"role": "assistant", "content": "The capital of France is"}]
    reply = engine.chat(begun, GREEDY)
    prompt = engine.chat_renderer.render(Conversation.from_json(begun))
    assert prompt.endswith("assistant\nThe capital of France is")
    assert reply.content == engine.generate(prompt, GREEDY).text
    assert reply.content.startswith(" Paris")


def test_leaving_a_stream_aborts_it(engine):
    stream = engine.chat(COUNT, {"max_new_tokens": 1000, "ignore_eos": True}, stream=True)
    next(stream)
    stream.close()
    assert engine.chat(QUESTION, GREEDY).finish_reason == "stop"
    assert engine.stats().num_running == 0


# ---- tools and reasoning -------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_and_its_result(engine, stream):
    said = f"<think>\nWhere?\n</think>\n\nLet me see.\n{CALL}\n{CALL}"
    arguments = {"tools": [WEATHER, TIME], "custom_logit_processor": Say(engine, said), "stream": stream}
    reply = engine.chat(QUESTION, {"max_new_tokens": 200}, **arguments)
    if stream:
        deltas = list(reply)
        reply = check_stream(deltas)
        assert sum(bool(delta.tool_calls) for delta in deltas) > 4  # arguments came in pieces
    assert (reply.reasoning_content, reply.content) == ("Where?", "Let me see.")
    assert [(call.name, call.arguments) for call in reply.tool_calls] == [
        ("get_weather", '{"city": "Paris"}')
    ] * 2
    assert reply.finish_reason == "tool_calls"
    assert reply.output.text == said
    ids = [call.id for call in reply.tool_calls]
    assert len(set(ids)) == 2
    assert all(len(one) == 9 and one.isalnum() for one in ids)
    results = [{"role": "tool", "tool_call_id": one, "content": "sunny"} for one in ids]
    messages = [*QUESTION, reply.message, *results]
    text = engine.chat_renderer.render(Conversation.from_json(messages))
    assert text.count(CALL) == text.count("<|im_start|>tool\nsunny<|im_end|>") == 2
    assert engine.chat(messages, GREEDY, tools=[WEATHER]).content


def test_a_call_cut_short_is_text(engine):
    say = Say(engine, CALL)
    reply = engine.chat(QUESTION, {"max_new_tokens": 12}, tools=[WEATHER], custom_logit_processor=say)
    assert reply.finish_reason == "length"
    assert reply.tool_calls == ()
    assert reply.content == reply.output.text


def test_hidden_tools(engine):
    arguments = {"tool_choice": "none", "custom_logit_processor": Say(engine, CALL)}
    reply = engine.chat(QUESTION, {"max_new_tokens": 200}, tools=[WEATHER], **arguments)
    assert (reply.content, reply.tool_calls, reply.finish_reason) == (CALL, (), "stop")
    shown = engine.chat(QUESTION, GREEDY, tools=[WEATHER])
    assert shown.prompt_tokens > reply.prompt_tokens == engine.chat(QUESTION, GREEDY).prompt_tokens


PIECES = st.lists(
    st.sampled_from(["<think>", "</think>", "\n", "Well. ", CALL, CALL[:40], "<tool_", "}", '{"name": ']),
    max_size=6,
)


@settings(max_examples=200, deadline=None)
@given(PIECES, st.lists(st.integers(0, 500), max_size=10), st.booleans(), st.booleans())
def test_any_snapshots_of_a_reply_give_the_same(pieces, places, with_tools, in_reasoning):
    text = "".join(pieces)
    ends = [*sorted(place % (len(text) + 1) for place in places), len(text)]

    def read(ends):
        reasoning = get_reasoning_format("qwen3")
        tool_format = get_format("qwen25") if with_tools else None
        reader = ReplyReader(tool_format, ["get_weather"], reasoning, in_reasoning=in_reasoning)
        for i, end in enumerate(ends):
            reason = {"type": "stop"} if i == len(ends) - 1 else None
            yield reader.read(
                RequestOutput(
                    rid="r",
                    text=text[:end],
                    token_ids=(),
                    finish_reason=reason,
                    prompt_tokens=1,
                    completion_tokens=end,
                    cached_tokens=0,
                )
            )

    whole = check_stream(list(read(ends[-1:])))
    assert check_stream([delta for delta in read(ends) if delta]) == whole
    assert whole.finish_reason == ("tool_calls" if whole.tool_calls else "stop")


def test_deepseek_reasons_first(smollm2_gguf):
    tokenizer = load_tokenizer(smollm2_gguf)
    renderer = ChatRenderer(tokenizer, reasoning=get_reasoning_format("deepseek-r1"))
    conversation = Conversation.from_json(QUESTION)
    prompt = renderer.encode(conversation)
    assert prompt.in_reasoning
    output = RequestOutput(
        rid="r",
        text="Hm.\n</think>\n\nParis.",
        token_ids=(),
        finish_reason={"type": "stop"},
        prompt_tokens=1,
        completion_tokens=1,
        cached_tokens=0,
    )
    reply = ChatOptions().reader(renderer, prompt).read(output).output
    assert (reply.reasoning_content, reply.content) == ("Hm.", "Paris.")
    assert not ChatRenderer(tokenizer).encode(conversation).in_reasoning


# ---- constraints ---------------------------------------------------------------------------------------


@pytest.fixture
def renderer(smollm2_gguf):
    tokenizer = load_tokenizer(smollm2_gguf)
    tokenizer.chat_template = TEMPLATE

    def build(reasoning=None):
        return ChatRenderer(
            tokenizer, None, get_format("qwen25"), reasoning and get_reasoning_format(reasoning)
        )

    return build


def params_of(renderer, **options):
    options = ChatOptions.read(**options)
    return options.prepare(renderer, Conversation.from_json(QUESTION), rootlet.SamplingParams())[1]


def grammar_of(params):
    """The structural tag as xgrammar is given it."""
    rules = Constraint("structural_tag", params.structural_tag).rules()
    return xgrammar.Grammar.from_ebnf(as_ebnf(rules))


def test_required_calls_are_forced_by_a_grammar(renderer):
    named = {"type": "function", "function": {"name": "get_time"}}
    time_call = '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'
    for choice, allowed, refused in [("required", [CALL, time_call], []), (named, [time_call], [CALL])]:
        params = params_of(renderer(), tools=[WEATHER, TIME], tool_choice=choice)
        assert not params.skip_special_tokens
        grammar = grammar_of(params)
        assert all(accepts(grammar, text) for text in allowed)
        assert not any(accepts(grammar, text) for text in [*refused, "No.", "", CALL.replace("Paris", '"')])
    for choice in ("auto", None):
        assert params_of(renderer(), tools=[WEATHER], tool_choice=choice).structural_tag is None


def test_reasoning_goes_before_what_a_grammar_forces(renderer):
    for name, thoughts, refused in [
        ("qwen3", ["", "<think>Hm.</think>\n\n"], ["Hm.</think>", "<think>"]),
        ("deepseek-r1", ["Hm.</think>\n\n"], ["", "<think>"]),
    ]:
        for options, answer in [
            ({"tools": [WEATHER], "tool_choice": "required"}, CALL),
            ({"response_format": {"type": "json_object"}}, '{"a": 1}'),
        ]:
            grammar = grammar_of(params_of(renderer(name), **options))
            assert all(accepts(grammar, thought + answer) for thought in thoughts)
            assert not any(accepts(grammar, thought + answer) for thought in refused)


def test_response_formats(renderer):
    schema = {"type": "array"}
    for response_format, expected in [
        (None, None),
        ({"type": "text"}, None),
        ({"type": "json_object"}, '{"type": "object"}'),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}, '{"type": "array"}'),
    ]:
        assert params_of(renderer(), response_format=response_format).json_schema == expected


@pytest.mark.parametrize("name", ["llama3", "mistral", "qwen25"])
def test_a_model_that_knows_no_tools_calls_them_where_it_must(smollm2_gguf, name):
    """Real weights, greedy and drawn, several samples: calls of offered tools, with arguments that fit."""
    options = {"max_total_tokens": 8192, "chat_template": TEMPLATE, "tool_call_parser": name}
    with rootlet.Engine(str(smollm2_gguf), **options) as engine:
        for choice, temperature in itertools.product(("required", NAMED), (0, 1)):
            stream = (choice is NAMED) == (temperature == 0)
            params = {"temperature": temperature, "seed": 3, "n": 2, "max_new_tokens": 40}
            asked = {"tools": [ALARM, TIME], "tool_choice": choice, "stream": stream}
            replies = engine.chat(QUESTION, params, **asked)
            if stream:
                by_sample = {}
                for delta in replies:
                    by_sample.setdefault(delta.index, []).append(delta)
                replies = [check_stream(deltas) for deltas in by_sample.values()]
            assert len(replies) == 2
            for reply in replies:
                check_calls(reply, {"set_alarm"} if choice is NAMED else {"set_alarm", "get_time"})


def check_calls(reply, names):
    """The reply is calls; one that was cut may end with the beginning of another."""
    assert reply.tool_calls or reply.finish_reason == "length"
    assert reply.finish_reason in ("tool_calls", "length")
    for call in reply.tool_calls:
        assert call.name in names
        if call.name == "set_alarm":
            jsonschema.validate(json.loads(call.arguments), ALARM["function"]["parameters"])


def test_answers_have_the_form_that_was_asked_for(engine):
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}, "big": {"type": "boolean"}},
        "required": ["city", "big"],
    }
    for temperature in (0, 1):
        params = {"temperature": temperature, "seed": 1, "n": 3, "max_new_tokens": 40}
        asked = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
        replies = engine.chat(QUESTION, params, response_format=asked)
        whole = [reply for reply in replies if reply.finish_reason == "stop"]
        assert whole  # this model may also think, and for long
        for reply in whole:
            jsonschema.validate(json.loads(reply.content), schema)
            assert reply.tool_calls == ()
        params["n"] = 2
        for reply in engine.chat(QUESTION, params, response_format={"type": "json_object"}):
            assert (reply.content or "{").startswith("{")
            if reply.finish_reason == "stop":
                assert isinstance(json.loads(reply.content), dict)


# ---- refusals ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tools": 5}, "tools must be a list"),
        ({"tool_choice": "auto"}, "tool_choice='auto' needs tools"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice='required' needs tools"),
        ({"tools": [TIME], "tool_choice": "any"}, "tool_choice must be"),
        ({"tools": [TIME], "tool_choice": {"function": {"name": "f"}}}, "names 'f', which is not among"),
        (
            {"tools": [TIME], "tool_choice": {"type": "custom", "custom": {"name": "f"}}},
            "tool_choice must be",
        ),
        ({"tools": [TIME], "tool_choice": {"type": "allowed_tools"}}, 'of type "allowed_tools" must be'),
        ({"tools": [STRICT]}, "strict is not supported where the model may choose"),
        (
            {"response_format": {"type": "json_object", "schema": {}}},
            "response_format.schema is not supported",
        ),
        ({"response_format": {"type": "text", "strict": True}}, "response_format.strict is not supported"),
        ({"response_format": "json"}, r"response_format\.type must be"),
        ({"response_format": {"type": "json_schema"}}, r"json_schema\.schema must be an object"),
        (
            {"tools": [TIME], "tool_choice": "required", "response_format": {"type": "json_object"}},
            "leave one of them out",
        ),
    ],
)
def test_options_that_are_refused(engine, options, message):
    with pytest.raises(InvalidRequestError, match=message):
        engine.chat(QUESTION, GREEDY, **options)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            {"role": "user", "content": "Hi", "tool_calls": [{}]},
            r"messages\[0\]\.tool_calls is not supported",
        ),
        ({"role": "assistant", "tool_calls": "f"}, "must be a list of calls"),
        ({"role": "assistant", "tool_calls": [{}]}, r"tool_calls\[0\] must be"),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]},
            "arguments is not JSON",
        ),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[]"}}]},
            "must be an object, or the JSON text of one",
        ),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}, "add their results"),
        ({"role": "user", "content": None}, r"content must be a string"),
        ({"role": "assistant", "content": []}, r"content must be a string"),
        ({"role": "tool", "content": "x", "name": 5}, r"name must be a string"),
    ],
)
def test_messages_that_are_refused(message, expected):
    with pytest.raises(InvalidRequestError, match=expected):
        Conversation.from_json([message])


def test_what_the_template_or_the_format_cannot_do(smollm2_gguf, renderer):
    tokenizer = load_tokenizer(smollm2_gguf)  # with its own template, which knows no tools
    with pytest.raises(InvalidRequestError, match="how this model writes tool calls is not known"):
        params_of(ChatRenderer(tokenizer), tools=[TIME])
    with pytest.raises(InvalidRequestError, match="has no place for tools"):
        params_of(ChatRenderer(tokenizer, None, get_format("qwen25")), tools=[TIME])
    called = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": ""}}]}
    messages = Conversation.from_json([*QUESTION, called, {"role": "tool", "content": "x"}])
    with pytest.raises(InvalidRequestError, match="has no place for tool_calls"):
        ChatRenderer(tokenizer).render(messages)
    assert 'arguments": {}' in renderer().render(messages)
    options = ChatOptions.read(response_format={"type": "json_object"})
    params = rootlet.SamplingParams(regex="a")
    with pytest.raises(InvalidRequestError, match=r"so does sampling_params\['regex'\]"):
        options.prepare(renderer(), Conversation.from_json(QUESTION), params)


def test_options_are_checked_before_the_model_is_looked_for():
    for name in ("tool_call_parser", "reasoning_parser"):
        with pytest.raises(ConfigError, match=f"{name}.*'none'"):
            rootlet.Engine("no such model", **{name: "none"})


def test_a_call_as_the_api_writes_it():
    call = ToolCall("abcdefghi", "f", "{}")
    function = {"name": "f", "arguments": "{}"}
    assert call.as_dict() == {"id": "abcdefghi", "type": "function", "function": function}


def test_prompts_as_tokenizers_return_them(engine):
    texts = ["The capital of France is", "One, two,"]
    outputs = engine.generate(texts, GREEDY)
    encoded = engine.tokenizer(texts)
    assert [out.text for out in engine.generate(input_ids=encoded, sampling_params=GREEDY)] == [
        out.text for out in outputs
    ]
    one = engine.generate(input_ids=engine.tokenizer(texts[0]), sampling_params=GREEDY)
    assert one.text == outputs[0].text


@pytest.mark.parametrize("text", ["\ud800", "Hello \udfff"])
def test_half_a_surrogate_pair_is_refused(engine, text):
    for call in (
        lambda: engine.generate(text, GREEDY),
        lambda: engine.generate(["Hi", text], GREEDY, stream=True),
        lambda: engine.submit(text, GREEDY),
        lambda: engine.score(text, [" a"]),
        lambda: engine.score("Hi", [text]),
        lambda: engine.chat([{"role": "user", "content": text}], GREEDY),
    ):
        with pytest.raises(InvalidRequestError, match="lone surrogate"):
            call()


@pytest.mark.parametrize("junk", [[1], {"a": 1}, 5, b"x"])
def test_ids_of_sessions_are_texts(engine, junk):
    for call in (engine.open_session, engine.close_session):
        with pytest.raises(InvalidRequestError, match="session"):
            call(junk)
