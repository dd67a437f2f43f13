"""What the OpenAI API, its clients and other servers write is taken, or refused by name."""

from __future__ import annotations

import contextlib
import json

import pydantic
import pytest

from rootlet import SamplingParams
from rootlet.engine.chat.conversation import Conversation
from rootlet.engine.chat.options import ChatOptions
from rootlet.engine.chat.render import ChatRenderer
from rootlet.errors import InvalidParameterError, InvalidRequestError
from rootlet.grammar.tool_calls import get_format
from rootlet.models.tokenizer import load_tokenizer

USER = {"role": "user", "content": "Hi"}
CALL = {"id": "abc", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
RESULT = {"role": "tool", "tool_call_id": "abc", "content": "2"}
SHOWN = {"id": "abc", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}


def read(*messages):
    """The messages as they are shown to a template."""
    return [
        {"role": one.role, "content": one.content, **dict(one.fields)}
        for one in Conversation.from_json(list(messages)).messages
    ]


def said(content, **fields):
    return {"role": "assistant", "content": content, **fields}


# every field of a message as ChatCompletionMessage.model_dump writes it
DUMPED = {"refusal": None, "annotations": None, "audio": None, "function_call": None, "tool_calls": None}


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        (USER | {"name": "Ann"}, USER | {"name": "Ann"}),
        (USER | {"name": None, "tool_calls": [], "annotations": []}, USER),
        (said("Yes.", **DUMPED), said("Yes.")),
        (said("Yes.", annotations=[], tool_calls=[], reasoning_content=None), said("Yes.")),
        (said("Yes.", parsed={"a": 1}), said("Yes.")),
        (said(None), said("")),
        (said(None, **DUMPED), said("")),
        ({"role": "assistant"}, said("")),
        (said(None, refusal="No."), said("No.")),
        (said("", refusal="No."), said("No.")),
        (said("Well.", refusal="No."), said(("Well.", "No."))),
        (said([{"type": "refusal", "refusal": "No."}]), said("No.")),
        (said([{"type": "text", "text": "Yes.", "annotations": []}]), said("Yes.")),
        (said("Yes.", reasoning="Hm."), said("Yes.", reasoning_content="Hm.")),
        (said("Yes.", reasoning="Hm.", reasoning_content="Hm."), said("Yes.", reasoning_content="Hm.")),
        (said(None, tool_calls=[CALL]), said("", tool_calls=[SHOWN])),
        (said(None, tool_calls=[CALL | {"index": 0}]), said("", tool_calls=[SHOWN])),
        (RESULT | {"content": [{"type": "text", "text": "2"}]}, RESULT),
        (
            {"role": "developer", "content": [{"type": "text", "text": "Be brief.", "cache_control": {}}]},
            {"role": "developer", "content": "Be brief."},
        ),
    ],
)
def test_messages_as_clients_write_them(message, shown):
    assert read(USER, message, USER)[1] == shown


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (said("x", audio={"id": "a"}), "audio is not supported: only text"),
        (said("x", annotations=[{"type": "url_citation"}]), "annotations is not supported"),
        (
            said(None, function_call={"name": "f", "arguments": "{}"}),
            "write the call as an entry of tool_calls",
        ),
        (USER | {"refusal": "No."}, "only the role 'assistant' refuses"),
        (USER | {"naem": "Ann"}, "naem is not supported: a message of this role has role, content, name"),
        (said("x", reasoning="a", reasoning_content="b"), "reasoning and reasoning_content differ"),
        ({"role": "function", "name": "f", "content": "x"}, "The results of calls have the role 'tool'"),
        ({"role": ["user"], "content": "x"}, "role must be one of"),
        (
            {"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]},
            "parts of type 'input_audio'",
        ),
        (
            {"role": "user", "content": [{"type": "text", "text": "x", "logprobs": [1]}]},
            "logprobs is not supp",
        ),
        (said(None, tool_calls=[CALL | {"type": "custom"}]), r"tool_calls\[0\] must be"),
        (said(None, tool_calls=[CALL | {"result": "2"}]), r"tool_calls\[0\].result is not supported"),
        (said(None, tool_calls=[{"function": {"name": "f", "arguments": "[" * 100_000}}]), "is not JSON"),
    ],
)
def test_what_a_prompt_cannot_say_is_refused_by_name(message, expected):
    with pytest.raises(InvalidRequestError, match=expected) as error:
        Conversation.from_json([USER, message, USER])
    assert len(str(error.value)) < 500


def test_messages_of_the_client_are_dumped():
    class Reply(pydantic.BaseModel):
        role: str = "assistant"
        content: str | None = None
        refusal: str | None = "No."

    assert read(USER, Reply(), USER)[1] == said("No.")


def test_the_developer_is_the_system_where_the_template_knows_no_other(smollm2_gguf):
    tokenizer = load_tokenizer(smollm2_gguf)
    talk = [{"role": "developer", "content": "Be brief."}, USER]
    render = ChatRenderer(tokenizer).render
    system = [{"role": "system", "content": "Be brief."}, USER]
    assert render(Conversation.from_json(talk)) == render(Conversation.from_json(system))
    tokenizer.chat_template = "{# system, developer #}{{ messages[0].role }}"
    assert ChatRenderer(tokenizer).render(Conversation.from_json(talk)) == "developer"


# ---- tool_choice ---------------------------------------------------------------------------------------

TOOLS = [{"type": "function", "function": {"name": name}} for name in ("f", "g", "h")]


def named(name):
    return {"type": "function", "function": {"name": name}}


def allowed(mode, *names):
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [named(one) for one in names]}}


@pytest.mark.parametrize(
    ("choice", "shown", "must_call"),
    [
        (None, "fgh", False),
        ("auto", "fgh", False),
        ("none", "", False),
        ("required", "fgh", True),
        ("g", "g", True),
        (named("g"), "g", True),
        ({"function": {"name": "g"}}, "g", True),
        (allowed("auto", "h", "f"), "fh", False),
        (allowed("required", "h"), "h", True),
    ],
)
def test_tool_choice(choice, shown, must_call):
    options = ChatOptions.read(TOOLS, choice)
    assert "".join(tool.function.name for tool in options.tools) == shown
    assert options.must_call == must_call


def test_one_call_at_a_time_can_be_kept_where_calls_are_forced(smollm2_gguf):
    tokenizer = load_tokenizer(smollm2_gguf)
    tokenizer.chat_template = "{{ tools }}"
    conversation = Conversation.from_json([USER])
    for name in ("llama3", "mistral", "qwen25"):
        renderer = ChatRenderer(tokenizer, None, get_format(name))
        many, one = (
            ChatOptions.read(TOOLS, "required", None, parallel)
            .prepare(renderer, conversation, SamplingParams())[1]
            .structural_tag
            for parallel in (True, False)
        )
        assert one.replace(', "stop_after_first": true', "") == many != one
    with pytest.raises(InvalidRequestError, match="cannot be kept where the model may choose"):
        ChatOptions.read(TOOLS, "auto", None, False)
    assert not ChatOptions.read(None, None, None, False).tools


def test_strict_tools_are_kept_to_where_calls_are_forced():
    strict = [{"type": "function", "function": {"name": "f", "strict": True}}]
    assert ChatOptions.read(strict, "required").must_call
    assert not ChatOptions.read(strict, "none").tools


# ---- response_format -----------------------------------------------------------------------------------


class Answer(pydantic.BaseModel):
    city: str


def asked(**schema):
    return {"type": "json_schema", "json_schema": schema}


@pytest.mark.parametrize(
    "given",
    [
        Answer,
        asked(schema=Answer),
        asked(schema=Answer.model_json_schema(), name="answer", strict=True, description="A city."),
        asked(schema=json.dumps(Answer.model_json_schema()), strict=False),
    ],
)
def test_an_answer_has_any_schema_that_json_schema_takes(given):
    assert (
        ChatOptions.read(response_format=given).answer_schema
        == SamplingParams(json_schema=Answer).json_schema
    )


def test_the_schema_stands_behind_reasoning_too(smollm2_gguf):
    from rootlet.grammar.reasoning import get_reasoning_format

    renderer = ChatRenderer(load_tokenizer(smollm2_gguf), reasoning=get_reasoning_format("qwen3"))
    conversation = Conversation.from_json([USER])
    tags = {
        ChatOptions.read(response_format=asked(schema=schema))
        .prepare(renderer, conversation, SamplingParams())[1]
        .structural_tag
        for schema in (Answer, Answer.model_json_schema(), json.dumps(Answer.model_json_schema()))
    }
    assert len(tags) == 1
    broken = ChatOptions.read(response_format=asked(schema="{"))
    with pytest.raises(InvalidRequestError, match="not JSON"):
        broken.prepare(renderer, conversation, SamplingParams())


def deep(levels):
    """A schema in a schema in a schema."""
    schema = {}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize("levels", [30, *range(901, 1000, 3), 200_000])
def test_schemas_at_any_depth_are_read_or_refused(smollm2_gguf, levels):
    from rootlet.grammar.reasoning import get_reasoning_format

    renderer = ChatRenderer(load_tokenizer(smollm2_gguf), reasoning=get_reasoning_format("qwen3"))
    with contextlib.ExitStack() as may_raise:
        if levels > 900:  # as deep as the stack of whoever asks allows
            may_raise.enter_context(contextlib.suppress(InvalidParameterError, InvalidRequestError))
        options = ChatOptions.read(response_format=asked(schema=deep(levels)))
        options.prepare(renderer, Conversation.from_json([USER]), SamplingParams())


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (asked(schema=5), InvalidParameterError, "json_schema must be a string"),
        (asked(schema={"a": {1}}), InvalidParameterError, "JSON cannot write"),
        (asked(schema=deep(200_000)), InvalidParameterError, "nested too deeply"),
        (asked(schema={}, strict="yes"), InvalidRequestError, "strict must be a bool"),
        (asked(schema={}, nmae="x"), InvalidRequestError, "nmae is not supported; there are schema, name"),
        (asked(name="x"), InvalidRequestError, "schema must be an object"),
        ({"type": ["text"]}, InvalidRequestError, "response_format.type must be"),
    ],
)
def test_formats_that_are_refused(given, error, message):
    with pytest.raises(error, match=message):
        ChatOptions.read(response_format=given)
