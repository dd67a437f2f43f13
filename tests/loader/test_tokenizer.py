"""load_tokenizer: where it looks, what it takes as a chat template, what it says when it cannot."""

from __future__ import annotations

import json
import shutil

import pytest

from rootlet.errors import ConfigError, ModelError, WeightsError
from rootlet.models.tokenizer import load_tokenizer

from .vocabularies import write_vocabulary

CHAT = [{"role": "user", "content": "hi"}]


def render(tokenizer) -> str:
    return tokenizer.apply_chat_template(CHAT, tokenize=False)


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocab") / "v.gguf"
    tokens = ["<s>", "a", "b", "ab"]
    return write_vocabulary(
        path, "gpt2", tokens, [3, 1, 1, 1], merges=["a b"], pre="gpt-2", chat_template="{{ 'own' }}"
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory, gguf_file):
    path = tmp_path_factory.mktemp("hf")
    load_tokenizer(gguf_file).save_pretrained(path)
    return path


def test_folder_and_file_give_the_same(folder, gguf_file):
    for tokenizer in (load_tokenizer(folder), load_tokenizer(str(folder)), load_tokenizer(gguf_file)):
        assert tokenizer.encode("abba<s>") == [3, 2, 1, 0]
        assert tokenizer.decode([3, 2, 1, 0], skip_special_tokens=True) == "abba"
        assert render(tokenizer) == "own"


def test_folder_with_a_gguf_file(tmp_path, gguf_file, folder):
    shutil.copy(gguf_file, tmp_path / "m.gguf")
    assert load_tokenizer(tmp_path).encode("ab") == [3]
    (tmp_path / "n.gguf").write_bytes(b"GGUF")
    with pytest.raises(WeightsError, match="several GGUF files"):
        load_tokenizer(tmp_path)
    for file in folder.iterdir():
        shutil.copy(file, tmp_path)
    assert load_tokenizer(tmp_path).encode("ab") == [3]  # tokenizer files go before GGUF


def test_slow_mode(folder, gguf_file):
    with pytest.raises(ConfigError, match="has no slow tokenizer; use tokenizer_mode='auto'"):
        load_tokenizer(gguf_file, mode="slow")
    with pytest.raises(ConfigError, match="tokenizer_mode must be one of auto, slow, got 'fast'"):
        load_tokenizer(folder, mode="fast")


def test_folder_without_tokenizer(tmp_path):
    with pytest.raises(ModelError, match=r"no tokenizer files \(tokenizer\.json.*tokenizer_path"):
        load_tokenizer(tmp_path)
    (tmp_path / "other.txt").write_text("x")
    with pytest.raises(ConfigError, match="not a folder or a GGUF file"):
        load_tokenizer(tmp_path / "other.txt")
    with pytest.raises(ConfigError, match="no such file or folder"):
        load_tokenizer(tmp_path / "absent")


@pytest.mark.parametrize("content", ["", "{", "{}", json.dumps({"model": {"type": "Nothing"}})])
def test_broken_tokenizer_json(tmp_path, folder, content):
    for file in folder.iterdir():
        shutil.copy(file, tmp_path)
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ModelError, match="cannot load the tokenizer"):
        load_tokenizer(tmp_path)
