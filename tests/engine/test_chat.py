"""Messages to prompts, on the real tokenizer; stop strings of chat templates, on the real model."""

from __future__ import annotations

import json

import pytest

import rootlet
from rootlet.cli.chat import ChatSession
from rootlet.engine.chat.conversation import Conversation
from rootlet.engine.chat.render import ChatPrompt, ChatRenderer
from rootlet.errors import ConfigError, InvalidRequestError
from rootlet.grammar.chat_templates import read_chat_template
from rootlet.models.tokenizer import load_tokenizer

USER = {"role": "user", "content": "Hi"}
PARTS = [{"type": "text", "text": "Hello"}, {"type": "text", "text": " you"}]
GREEDY = {"temperature": 0, "max_new_tokens": 24}


@pytest.fixture
def renderer(smollm2_gguf):
    """``renderer(option)``: on SmolLM2's tokenizer, with a chat template or its own."""
    tokenizer = load_tokenizer(smollm2_gguf)

    def build(option=None):
        template = None if option is None else read_chat_template(option)
        if template is not None:
            tokenizer.chat_template = template.jinja
        return ChatRenderer(tokenizer, template)

    build.tokenizer = tokenizer
    return build


def talk(*messages):
    return Conversation.from_json(list(messages))


def test_ids_and_stop_strings(renderer):
    prompt = renderer("chatml").encode(talk(USER))
    text = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert prompt == ChatPrompt(renderer.tokenizer.encode(text), ("<|endoftext|>", "<|im_end|>"))
    assert renderer("{{ messages[0].content }}").encode(talk(USER)).stop == ()


def test_stop_strings_are_added_to_those_of_the_request():
    params = rootlet.SamplingParams(stop=["a", "b"], seed=3)
    prompt = ChatPrompt([1], ("c", "a"))
    assert prompt.add_stop(params).stop == ("c", "a", "b")
    assert prompt.add_stop(params).seed == 3
    assert params.stop == ("a", "b")
    assert ChatPrompt([1]).add_stop(params) is params


@pytest.mark.parametrize(
    ("option", "end"),
    [
        ("vicuna_v1.1", " USER: Hi ASSISTANT: One, two"),
        ("llama-2", "[INST] Hi [/INST] One, two"),
        ("chatml", "<|im_start|>assistant\nOne, two"),
        (None, "<|im_start|>assistant\nOne, two"),
    ],
)
def test_an_unfinished_reply_is_continued(renderer, option, end):
    reply = {"role": "assistant", "content": "One, two"}
    assert renderer(option).render(talk(USER, reply)).endswith(end)
    nothing = {"role": "assistant", "content": ""}
    assert renderer(option).render(talk(USER, nothing)) == renderer(option).render(talk(USER))


def test_messages_of_several_parts(renderer):
    user = {"role": "user", "content": PARTS}
    assert "user\nHello\n you<|im_end|>" in renderer().render(talk(user))
    assert "user\nHello you<|im_end|>" in renderer("chatml").render(talk(user))
    for role in ("system", "assistant"):
        with pytest.raises(
            InvalidRequestError, match=f"the {role} message must be a single text, got 2 parts"
        ):
            renderer("chatml").render(talk({"role": role, "content": PARTS}, USER))
        renderer("chatml").render(talk({"role": "system", "content": PARTS[:1]}, USER))


@pytest.mark.parametrize("role", ["tool", "developer"])
def test_roles_a_conversation_template_does_not_know(renderer, role):
    with pytest.raises(InvalidRequestError, match=f"Unknown role: {role}"):
        renderer("qwen2-vl").render(talk(USER, {"role": role, "content": "x"}, USER))


def test_images_are_refused_by_name():
    image = {"type": "image_url", "image_url": {"url": "x"}}
    with pytest.raises(InvalidRequestError, match=r"messages\[0\]\.content\[1\]: parts of type 'image_url'"):
        talk({"role": "user", "content": [PARTS[0], image]})
    with pytest.raises(InvalidRequestError, match=r'content\[0\] must be {"type": "text"'):
        talk({"role": "user", "content": [{"text": "no type"}]})


def test_the_tokenizer_adds_its_bos_once(tmp_path):
    from ..loader.vocabularies import write_vocabulary

    tokens = ["<unk>", "<s>", "</s>", "\u2581", "H", "i", "U", "A", ":", "\n"]
    path = write_vocabulary(
        tmp_path / "v.gguf", "llama", tokens, [2, 3, 3, *[1] * 7], scores=[0.0] * 10, add_bos_token=True
    )
    file = tmp_path / "t.json"
    keys = {
        "name": "x",
        "system": "",
        "user": "U",
        "assistant": "A",
        "sep_style": "FALCON_CHAT",
        "stop_str": [],
    }
    file.write_text(json.dumps(keys))
    tokenizer = load_tokenizer(path)
    for option, bos in ((str(file), 1), ("{{ bos_token }}{{ messages[0].content }}", 1), ("{{ 'H' }}", 0)):
        template = read_chat_template(option)
        tokenizer.chat_template = template.jinja
        assert ChatRenderer(tokenizer, template).encode(talk(USER)).token_ids.count(1) == bos


# ---- on the model --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine(smollm2_gguf, tmp_path_factory):
    """SmolLM2 with its own format as a JSON template, whose replies stop at a comma or " is"."""
    file = tmp_path_factory.mktemp("chat") / "t.json"
    keys = {
        "name": "short",
        "system": "<|im_start|>system",
        "system_message": "You are a helpful assistant.",
        "user": "<|im_start|>user",
        "assistant": "<|im_start|>assistant",
        "sep_style": "CHATML",
        "sep": "<|im_end|>",
        "stop_str": [",", " is"],
    }
    file.write_text(json.dumps(keys))
    options = {"dtype": "float32", "max_total_tokens": 2048, "chat_template": str(file)}
    with rootlet.Engine(str(smollm2_gguf), **options) as engine:
        yield engine


QUESTION = "What is the capital of Italy?"


@pytest.fixture(scope="module")
def answer(engine):
    """What the model says up to the template's stop string, asked by hand."""
    text = engine.tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}], tokenize=False, add_generation_prompt=True
    )
    whole = engine.generate(text, GREEDY)
    cut = engine.generate(text, GREEDY | {"stop": [",", " is"]})
    assert len(cut.text) < len(whole.text)
    assert whole.text.startswith(cut.text)
    return cut


def test_a_job_stops_where_the_template_says(engine, answer, tmp_path):
    messages = [{"role": "user", "content": QUESTION}]
    lines = [
        {"id": "plain", "messages": messages},
        {"id": "own", "messages": messages, "sampling_params": {"stop": answer.text[3:6]}},
        {"custom_id": "openai", "url": "/v1/chat/completions", "body": {"messages": messages}},
        {"id": "text", "prompt": "1, 2, 3,"},
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rootlet.run_jobs(
        tmp_path / "in.jsonl", tmp_path / "out.jsonl", engine=engine, sampling_params=GREEDY, progress=False
    )
    records = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    by_id = {record.get("custom_id") or record["id"]: record for record in records}
    assert by_id["plain"]["text"] == answer.text
    assert by_id["plain"]["finish_reason"] == answer.finish_reason
    assert by_id["own"]["text"] == answer.text[:3]  # its own stop string comes earlier
    assert by_id["openai"]["response"]["body"]["choices"][0]["message"]["content"] == answer.text
    assert "," in by_id["text"]["text"]  # a prompt that is no chat has nothing to do with the template


def test_the_commands_stop_where_the_template_says(engine, answer, monkeypatch, capsys):
    class Lent:
        def __init__(self, model, **options):
            pass

        def __enter__(self):
            return engine

        def __exit__(self, *exc_info):
            return None

    from rootlet.__main__ import main

    monkeypatch.setattr("rootlet.engine.engine.Engine", Lent)
    arguments = ["--model", "M", "--temperature", "0", "--max-new-tokens", "24"]
    assert main(["generate", "--chat", QUESTION, *arguments]) == 0
    assert capsys.readouterr().out == answer.text + "\n"
    session = ChatSession(engine, GREEDY)
    session.ask(QUESTION, lambda piece: None)
    assert session.messages[-1] == ("assistant", answer.text)


def test_a_wrong_template_is_refused_before_the_model_is_looked_for():
    with pytest.raises(ConfigError, match="chat_template 'chatlm' is neither"):
        rootlet.Engine("no such model", chat_template="chatlm")
    with pytest.raises(ConfigError, match="chat_template needs a tokenizer"):
        rootlet.Engine("no such model", chat_template="chatml", skip_tokenizer_init=True)
