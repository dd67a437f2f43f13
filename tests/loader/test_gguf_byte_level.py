"""Byte-level BPE from GGUF metadata, against the algorithm written plainly."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from rootlet.errors import ModelError
from rootlet.models.gguf_tokenizer import load_gguf_tokenizer

from .vocabularies import RULES, WORDS, plain_bpe, texts, write_vocabulary


@pytest.fixture(scope="module")
def trained() -> tuple[list[str], list[str]]:
    """(tokens, merges) of a byte-level BPE learnt from this file, special tokens first."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<s>", "</s>", "<a>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    lines = Path(__file__).read_text(encoding="utf-8").splitlines(keepends=True)
    tokenizer.train_from_iterator([*lines, *WORDS * 5, "12 123 1234 12345   12 é é"], trainer)
    vocab = tokenizer.get_vocab()
    tokens = sorted(vocab, key=vocab.get)
    merges = [" ".join(pair) for pair in json_merges(tokenizer)]
    return tokens, merges


def json_merges(tokenizer) -> list[list[str]]:
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]


def byte_level_file(path: Path, trained, pre: str | None, **fields) -> Path:
    tokens, merges = trained
    types = [3, 3, 4] + [1] * (len(tokens) - 3)
    named = {"bos_token_id": 0, "eos_token_id": 1} | fields
    if pre is not None:
        named["pre"] = pre
    return write_vocabulary(path, "gpt2", tokens, types, merges=merges, **named)


@pytest.mark.parametrize("pre", sorted(RULES))
@given(text=texts)
@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_byte_level_bpe_by_the_definition(trained, built, pre, text):
    tokenizer = built(pre)
    tokens = tokenizer.convert_ids_to_tokens(tokenizer.encode(text, add_special_tokens=False))
    # merges were learnt across spaces and digits, so a wrong splitting rule changes tokens
    assert tokens == plain_bpe(text, RULES[pre], trained[1], ["<s>", "</s>", "<a>"])
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


@pytest.fixture(scope="module")
def built(tmp_path_factory, trained) -> Callable:
    folder = tmp_path_factory.mktemp("vocabularies")
    tokenizers = {
        pre: load_gguf_tokenizer(byte_level_file(folder / f"{pre}.gguf", trained, pre, add_bos_token=False))
        for pre in RULES
    }
    return tokenizers.__getitem__


def test_whole_words(tmp_path):
    """llama-bpe takes a word that is in the vocabulary even where no merges lead to it; gpt-2 does not."""
    letters = list("abc")
    files = {
        pre: write_vocabulary(
            tmp_path / f"{pre}.gguf",
            "gpt2",
            [*letters, "ab", "abc"],
            [1] * 5,
            merges=["a b"],
            pre=pre,
            add_bos_token=False,
        )
        for pre in ("llama-bpe", "gpt-2")
    }
    assert load_gguf_tokenizer(files["llama-bpe"]).tokenize("abc") == ["abc"]
    assert load_gguf_tokenizer(files["gpt-2"]).tokenize("abc") == ["ab", "c"]


def test_qwen2_composes_characters(tmp_path, trained):
    tokenizer = load_gguf_tokenizer(byte_level_file(tmp_path / "v.gguf", trained, "qwen2"))
    assert tokenizer.encode("e\u0301") == tokenizer.encode("é")


@pytest.mark.parametrize("pre", [None, "default"])
def test_missing_and_unknown_rule(tmp_path, trained, caplog, pre):
    tokenizer = load_gguf_tokenizer(byte_level_file(tmp_path / "v.gguf", trained, pre))
    assert "tokenizer.ggml.pre" in caplog.text
    assert tokenizer.tokenize("a  12") == plain_bpe("a  12", RULES["gpt-2"], trained[1], ["<s>"])
    with pytest.raises(ModelError, match=r"'klingon' is not supported; supported: .*llama-bpe.*smollm"):
        load_gguf_tokenizer(byte_level_file(tmp_path / "w.gguf", trained, "klingon"))


@pytest.mark.parametrize(
    ("pre", "fields", "expected"),
    [
        ("gpt-2", {}, []),
        ("gpt-2", {"add_bos_token": True}, ["<s>"]),
        ("gpt-2", {"add_bos_token": True, "add_eos_token": True}, ["<s>", "</s>"]),
        ("gpt-2", {"add_eos_token": True}, ["</s>"]),
        ("llama-bpe", {}, ["<s>"]),
        ("llama-bpe", {"add_bos_token": False}, []),
    ],
)
def test_what_is_added_around_a_text(tmp_path, trained, pre, fields, expected):
    tokenizer = load_gguf_tokenizer(byte_level_file(tmp_path / "v.gguf", trained, pre, **fields))
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("")) == expected
    around = tokenizer.convert_ids_to_tokens(tokenizer("<a>")["input_ids"])
    assert around == [t for t in expected if t == "<s>"] + ["<a>"] + [t for t in expected if t == "</s>"]
    assert tokenizer.encode("<a>", add_special_tokens=False) == [2]


def test_special_tokens(tmp_path, trained):
    path = byte_level_file(tmp_path / "v.gguf", trained, "gpt-2", padding_token_id=1, unknown_token_id=0)
    tokenizer = load_gguf_tokenizer(path)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1, 1)
    assert sorted(tokenizer.all_special_ids) == [0, 1]
    ids = tokenizer.encode("x<s>y<a></s>")
    assert tokenizer.decode(ids, skip_special_tokens=True) == "xy<a>"  # <a> is user-defined, not control
    assert tokenizer.decode(ids) == "x<s>y<a></s>"
    assert len(tokenizer) == len(trained[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "rwkv"}, "kind 'rwkv' is not supported; supported: gpt2, llama"),
        ({"tokens": []}, "has no tokenizer"),
        ({"types": [1]}, "3 tokens but 1 entries in token_type"),
        ({"merges": None}, r"needs tokenizer\.ggml\.merges"),
        ({"merges": ["a zz"]}, "do not fit together"),
        ({"merges": ["ab"]}, "do not fit together"),
        ({"bos_token_id": 3}, "bos_token has the id 3, outside a vocabulary of 3"),
        ({"add_bos_token": True}, "adds a bos_token to each text, but the file names none"),
        ({"model": "llama"}, r"needs tokenizer\.ggml\.scores"),
        ({"merges": "a b"}, "must be an array"),
    ],
)
def test_what_cannot_be_built(tmp_path, change, message):
    fields = {
        "model": "gpt2",
        "tokens": ["a", "b", "ab"],
        "types": [1, 1, 1],
        "merges": ["a b"],
        "pre": "gpt-2",
    } | change
    path = write_vocabulary(tmp_path / "v.gguf", **fields)
    with pytest.raises(ModelError, match=message):
        load_gguf_tokenizer(path)


def test_chat_templates(tmp_path, trained):
    one = load_gguf_tokenizer(byte_level_file(tmp_path / "a.gguf", trained, "gpt-2", chat_template="{{ 1 }}"))
    assert one.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False) == "1"
    fields = {"chat_template": "{{ 1 }}", "chat_templates": ["tool_use"], "chat_template.tool_use": "{{ 2 }}"}
    several = load_gguf_tokenizer(byte_level_file(tmp_path / "b.gguf", trained, "gpt-2", **fields))
    chat = [{"role": "user", "content": "x"}]
    assert several.apply_chat_template(chat, tokenize=False) == "1"
    assert several.apply_chat_template(chat, tokenize=False, chat_template="tool_use") == "2"
