"""Chat templates by name, from JSON and from Jinja: what they render, and how wrong ones are refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.exceptions import TemplateError

from rootlet.errors import ConfigError
from rootlet.grammar.chat_templates import ChatTemplate, ConversationTemplate, read_chat_template
from rootlet.grammar.chat_templates.builtin import BUILT_IN
from rootlet.grammar.chat_templates.styles import STYLES
from rootlet.models.tokenizer import load_tokenizer

ASK = (("user", "Hi"),)
TURNS = (("user", "Hi"), ("assistant", "Hello!"), ("user", "2 + 2?"))
TOLD = (("system", "Be brief."), *TURNS)

CHATML_ASK = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
CHATML_TURNS = (
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n"
    "<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n"
)
CHATML_HELPFUL = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
CHATML_BRIEF = "<|im_start|>system\nBe brief.<|im_end|>\n"
LLAMA3_ASK = (
    "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
LLAMA3_TURNS = (
    "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nHello!<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n2 + 2?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
LLAMA3_LLAVA = (
    "<|start_header_id|>system<|end_header_id|>\n\nYou are a helpful language and vision assistant. You are "
    "able to understand the visual content that the user provides, and assist the user with a variety of "
    "tasks using natural language.<|eot_id|>"
)
LLAMA3_BRIEF = "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the user's questions. "
)

# name -> prompts for ASK, TURNS and TOLD, then the stop strings
PUBLISHED = {
    "llama-2": (
        "[INST] Hi [/INST]",
        "[INST] Hi [/INST] Hello! </s><s>[INST] 2 + 2? [/INST]",
        "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello! </s><s>[INST] 2 + 2? [/INST]",
        ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"),
    ),
    "chatml": (
        CHATML_HELPFUL + CHATML_ASK,
        CHATML_HELPFUL + CHATML_TURNS,
        CHATML_BRIEF + CHATML_TURNS,
        ("<|endoftext|>", "<|im_end|>"),
    ),
    "vicuna_v1.1": (
        VICUNA + "USER: Hi ASSISTANT:",
        VICUNA + "USER: Hi ASSISTANT: Hello!</s>USER: 2 + 2? ASSISTANT:",
        "Be brief. USER: Hi ASSISTANT: Hello!</s>USER: 2 + 2? ASSISTANT:",
        (),
    ),
    "internlm2-chat": (
        CHATML_ASK,
        CHATML_TURNS,
        CHATML_BRIEF + CHATML_TURNS,
        ("<|im_end|>", "<|action_end|>"),
    ),
    "qwen2-vl": (
        CHATML_HELPFUL + CHATML_ASK,
        CHATML_HELPFUL + CHATML_TURNS,
        CHATML_BRIEF + CHATML_TURNS,
        ("<|im_end|>",),
    ),
    "minicpmv": (
        CHATML_HELPFUL + CHATML_ASK,
        CHATML_HELPFUL + CHATML_TURNS,
        CHATML_BRIEF + CHATML_TURNS,
        ("<|im_end|>", "<|endoftext|>"),
    ),
    "llama_3_vision": (
        LLAMA3_LLAVA + LLAMA3_ASK,
        LLAMA3_LLAVA + LLAMA3_TURNS,
        LLAMA3_BRIEF + LLAMA3_TURNS,
        ("<|end_of_text|>", "<|eot_id|>"),
    ),
    "llava_llama_3": (
        LLAMA3_LLAVA + LLAMA3_ASK,
        LLAMA3_LLAVA + LLAMA3_TURNS,
        LLAMA3_BRIEF + LLAMA3_TURNS,
        ("<|end_of_text|>", "<|eot_id|>"),
    ),
    "chatml-llava": (
        CHATML_HELPFUL + CHATML_ASK,
        CHATML_HELPFUL + CHATML_TURNS,
        CHATML_BRIEF + CHATML_TURNS,
        ("<|endoftext|>", "<|im_end|>"),
    ),
}

JSON = {
    "name": "mine",
    "system": "<S>",
    "user": "U",
    "assistant": "A",
    "sep": "|",
    "sep2": "#",
    "stop_str": "U",
}

# style -> prompts for ASK, and for TOLD
STYLE_PROMPTS = {
    "ADD_COLON_SINGLE": ("<S>\n|U: Hi|A:", "<S>\nBe brief.|U: Hi|A: Hello!|U: 2 + 2?|A:"),
    "ADD_COLON_TWO": ("<S>\n|U: Hi|A:", "<S>\nBe brief.|U: Hi|A: Hello!#U: 2 + 2?|A:"),
    "ADD_COLON_SPACE_SINGLE": ("<S>\n|U: Hi|A: ", "<S>\nBe brief.|U: Hi|A: Hello!|U: 2 + 2?|A: "),
    "NO_COLON_SINGLE": ("<S>\nUHi|A", "<S>\nBe brief.UHi|AHello!|U2 + 2?|A"),
    "NO_COLON_TWO": ("<S>\nUHi|A", "<S>\nBe brief.UHi|AHello!#U2 + 2?|A"),
    "ADD_NEW_LINE_SINGLE": ("<S>\n|U\nHi|A\n", "<S>\nBe brief.|U\nHi|A\nHello!|U\n2 + 2?|A\n"),
    "LLAMA2": ("[INST] Hi A", "<S>\nBe brief.Hi A Hello!#U 2 + 2?|A"),
    "LLAMA3": (
        "<|start_header_id|>U<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>A<|end_header_id|>\n\n",
        "<S>\nBe brief.<|start_header_id|>U<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>A<|end_header_id|>\n\nHello!<|eot_id|>"
        "<|start_header_id|>U<|end_header_id|>\n\n2 + 2?<|eot_id|><|start_header_id|>A<|end_header_id|>\n\n",
    ),
    "CHATGLM": (
        "<S>\n|[Round 0]|U：Hi|A：",
        "<S>\nBe brief.|[Round 0]|U：Hi|A：Hello!|[Round 1]|U：2 + 2?|A：",
    ),
    "CHATML": ("<S>\n|\nU\nHi|\nA\n", "<S>\nBe brief.|\nU\nHi|\nA\nHello!|\nU\n2 + 2?|\nA\n"),
    "CHATINTERN": ("<S>\n<s>U:Hi|\nA:", "<S>\nBe brief.<s>U:Hi|\nA:Hello!#\n<s>U:2 + 2?|\nA:"),
    "DOLLY": ("<S>\nU:\nHi|A:\n", "<S>\nBe brief.U:\nHi|A:\nHello!#\n\nU:\n2 + 2?|A:\n"),
    "RWKV": ("<S>\nU: Hi\n\nA:", "<S>\nBe brief.U: Hi\n\nA: Hello!\n\nU: 2 + 2?\n\nA:"),
    "PHOENIX": (
        "<S>\nU: <s>Hi</s>A: <s>",
        "<S>\nBe brief.U: <s>Hi</s>A: <s>Hello!</s>U: <s>2 + 2?</s>A: <s>",
    ),
    "ROBIN": ("<S>\n|U:\nHi|A:\n", "<S>\nBe brief.|U:\nHi|A:\nHello!|U:\n2 + 2?|A:\n"),
    "FALCON_CHAT": ("U: Hi|A:", "<S>\nBe brief.|U: Hi|A: Hello!|U: 2 + 2?|A:"),
    "CHATGLM3": ("U\nHiA", "<S>\nBe brief.U\nHiA\nHello!U\n2 + 2?A"),
    "DEEPSEEK_CHAT": ("<S>\nU: Hi|A:", "<S>\nBe brief.U: Hi|A: Hello!#U: 2 + 2?|A:"),
    "METAMATH": ("<S>\n|U:\nHi|A: #", "<S>\nBe brief.|U:\nHi|A: #Hello!U:\n2 + 2?|A: #"),
}


@pytest.fixture(scope="module")
def render(smollm2_gguf):
    """``render(template, messages)``: the prompt as transformers renders it."""
    tokenizer = load_tokenizer(smollm2_gguf)

    def run(template, messages, *, ask=True, **options):
        tokenizer.chat_template = template.jinja
        chat = [{"role": role, "content": text} for role, text in messages]
        return tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=ask, **options)

    return run


@pytest.fixture
def json_file(tmp_path):
    """``json_file(**values)``: the path of a JSON template; None leaves a key out."""

    def write(**values):
        file = tmp_path / "t.json"
        file.write_text(json.dumps({k: v for k, v in (JSON | values).items() if v is not None}))
        return file

    return write


def test_every_built_in_template_is_in_the_table():
    assert list(PUBLISHED) == list(BUILT_IN)
    assert list(STYLE_PROMPTS) == list(STYLES)


@pytest.mark.parametrize("name", PUBLISHED)
def test_built_in_templates(render, name):
    template = read_chat_template(name)
    assert (
        *(render(template, chat) for chat in (ASK, TURNS, TOLD)),
        template.conversation.stop,
    ) == PUBLISHED[name]


@pytest.mark.parametrize("style", STYLE_PROMPTS)
def test_json_files_of_every_style(render, json_file, style):
    template = read_chat_template(json_file(sep_style=style))
    assert (render(template, ASK), render(template, TOLD)) == STYLE_PROMPTS[style]
    assert template.conversation.stop == ("U",)


@pytest.mark.parametrize("name", [*PUBLISHED, *STYLES])
def test_finished_turns_begin_what_comes_next(render, json_file, name):
    """A conversation so far is a prefix of the conversation later, so the prefix cache finds it again."""
    template = read_chat_template(name if name in BUILT_IN else json_file(sep_style=name))
    so_far = render(template, TOLD[:3], ask=False)
    assert render(template, TOLD).startswith(so_far)
    asked = render(template, TOLD[:2]) + template.conversation.reply_gap
    assert so_far.startswith(asked + "Hello!")


@pytest.mark.parametrize("name", ["chatml", "vicuna_v1.1", "llama-2"])
def test_a_last_message_can_be_continued(render, name):
    template = read_chat_template(name)
    text = render(template, TURNS[:2], ask=False, continue_final_message=True)
    assert text == render(template, ASK) + template.conversation.reply_gap + "Hello!"


def test_json_defaults(render, json_file):
    """The documented example, which leaves out the system message and its default."""
    file = json_file(
        system="<|im_start|>system",
        user="<|im_start|>user",
        assistant="<|im_start|>assistant",
        sep_style="CHATML",
        sep="<|im_end|>",
        sep2=None,
        stop_str=["<|im_end|>", "<|im_start|>"],
    )
    template = read_chat_template(str(file))
    assert render(template, ASK) == "<|im_start|>system\n<|im_end|>\n" + CHATML_ASK
    assert render(template, TOLD) == CHATML_BRIEF + CHATML_TURNS
    assert template.conversation.stop == ("<|im_end|>", "<|im_start|>")
    plain = read_chat_template(
        json_file(sep_style="ADD_COLON_TWO", sep=None, sep2=None, system_message="Hm.")
    )
    assert render(plain, TURNS) == "<S>\nHm.\nU: Hi\nA: Hello!\nU: 2 + 2?\nA:"


def test_the_second_chatglm_counts_from_one(render, json_file):
    template = read_chat_template(json_file(sep_style="CHATGLM", name="chatglm2"))
    assert render(template, TURNS) == "<S>\n|[Round 1]|U：Hi|A：Hello!|[Round 2]|U：2 + 2?|A："


def test_styles_that_change_what_is_said(render, json_file):
    said = (("user", "\n a \r\n\r\n\r\n b \n"),)
    assert "<|end_header_id|>\n\na \r\n\r\n\r\n b<|eot_id|>" in render(
        read_chat_template("llama_3_vision"), said
    )
    assert "U: \n a \n\n b \n\n\nA:" in render(read_chat_template(json_file(sep_style="RWKV")), said)


def test_empty_messages_are_messages(render):
    assert render(read_chat_template("chatml"), (("system", ""), ("user", ""))) == (
        "<|im_start|>system\n<|im_end|>\n<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n"
    )
    assert render(read_chat_template("llama-2"), (("system", ""), *ASK)) == "[INST] Hi [/INST]"
    assert render(read_chat_template("vicuna_v1.1"), (("system", ""), *ASK)) == " USER: Hi ASSISTANT:"


words = st.text(st.sampled_from("a{}%$\\n'\"\n\r é🎉\u2028#") | st.characters(codec="utf-8"), max_size=8)


@settings(max_examples=60, deadline=None)
@given(style=st.sampled_from(sorted(STYLES.keys() - {"RWKV"})), texts=st.tuples(*[words] * 7))
def test_any_text_arrives_unchanged(render, style, texts):
    """Whatever the texts hold, Jinja's own marks among it, stands where a digit stands otherwise."""

    def prompt(user, assistant, sep, sep2, before, behind, said):
        template = ConversationTemplate(
            name="x", style=style, user=user, assistant=assistant, sep=sep, sep2=sep2, system=(before, behind)
        )
        messages = [(role, said) for role in ("system", "user", "assistant")]
        return render(ChatTemplate(template.to_jinja()), messages)

    texts = (*texts[:6], f"x{texts[6]}x")  # one style strips what is said
    meaning = dict(zip("1234567", texts))
    assert prompt(*texts) == "".join(meaning.get(char, char) for char in prompt(*"1234567"))


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ((*ASK, ("tool", "x")), "^Unknown role: tool$"),
        ((("developer", "x"), *ASK), "^Unknown role: developer$"),
        ((*ASK, ("system", "x")), "system message must be the first"),
        ((("system", "x"), ("system", "x"), *ASK), "system message must be the first"),
        ((("user", [{"type": "image_url"}]),), "must be one text"),
        ((("system", ["x"]), *ASK), "must be one text"),
    ],
)
def test_refused_messages(render, messages, message):
    with pytest.raises(TemplateError, match=message):
        render(read_chat_template("chatml"), messages)


def test_jinja_files(render, tmp_path):
    file = tmp_path / "t.jinja"
    file.write_text("\n\n{{ messages[0]['content'] }}\\n.\n")
    for option in (file, str(file)):
        template = read_chat_template(option)
        assert (render(template, ASK), template.conversation) == ("Hi\n.", None)


@pytest.mark.parametrize("text", ["{{ 'x' }}", "{% if true %}x{% endif %}", "{{ 'x' }}{# .jinja #}"])
def test_jinja_text(render, text):
    assert render(read_chat_template(text), ASK) == "x"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("chatlm", r"^chat_template 'chatlm' is neither the name of a built-in template \(llama-2, chatml, "),
        ("template.txt", r"nor the path of a \.jinja or \.json file, nor Jinja text"),
        ("", "neither"),
        ("/no/such/file.jinja", "cannot be read"),
        ("/no/such/file.json", "cannot be read"),
    ],
)
def test_impossible_options(option, message):
    with pytest.raises(ConfigError, match=message):
        read_chat_template(option)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"user": None}, "the key 'user' is missing; required are name, system, user, assistant, sep_style"),
        ({"stop_str": None}, "'stop_str' is missing"),
        ({"roles": ["U", "A"]}, "unknown key 'roles'; there are name, .*sep2"),
        ({"assistant": 5}, "assistant must be a text, got 5"),
        ({"stop_str": 5}, "stop_str must be a text or a list of texts"),
        ({"stop_str": ["x", ""]}, "none of them empty"),
        (
            {"sep_style": "CHATLM"},
            r"Unknown separator style: 'CHATLM'.* Use one of ADD_COLON_SINGLE, .*METAMATH\.",
        ),
    ],
)
def test_broken_json_templates(json_file, values, message):
    with pytest.raises(ConfigError, match=message):
        read_chat_template(json_file(**{"sep_style": "CHATML"} | values))


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"{", "is not JSON"), (b"[]", "JSON object, got list"), (b"\xff", "cannot be read")],
)
def test_files_that_are_no_json_objects(tmp_path, content, message):
    (tmp_path / "t.json").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_chat_template(tmp_path / "t.json")
