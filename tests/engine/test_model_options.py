"""Engine options that say which model, tokenizer and config are used, where files come from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest

from rootlet import Engine
from rootlet.errors import ConfigError, ModelError, RequestTooLongError
from rootlet.models.tokenizer import load_tokenizer

from ..loader.vocabularies import write_vocabulary

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OPTIONS = {"load_format": "dummy", "device": "cpu", "max_total_tokens": 256}


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory):
    """A folder with nothing but a tokenizer of four tokens."""
    folder = tmp_path_factory.mktemp("tokenizer")
    file = folder.parent / "v.gguf"
    write_vocabulary(file, "gpt2", ["<s>", "a", "b", "ab"], [3, 1, 1, 1], merges=["a b"], pre="gpt-2")
    load_tokenizer(file).save_pretrained(folder)
    return folder


@pytest.fixture
def hub(tmp_path, tiny_model, tokenizer_dir, monkeypatch):
    """``hub(name, revision, *folders)`` puts a repository into a download folder; there is no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    def add(name, revision, *folders):
        repo = tmp_path / ("models--" + name.replace("/", "--"))
        (repo / "refs").mkdir(parents=True)
        (repo / "refs" / revision).write_text(COMMIT)
        for folder in folders:
            shutil.copytree(folder, repo / "snapshots" / COMMIT, dirs_exist_ok=True)
        return str(tmp_path)

    return add


def test_model_and_tokenizer_come_from_the_download_folder(hub, tiny_model, tokenizer_dir):
    folder = hub("someone/tiny", "v1", tiny_model, tokenizer_dir)
    with Engine("someone/tiny", download_dir=folder, revision="v1", **OPTIONS) as engine:
        assert engine.tokenizer.encode("abba") == [3, 2, 1]
        assert engine.generate("ab", {"max_new_tokens": 2, "ignore_eos": True}).completion_tokens == 2
    with pytest.raises(ConfigError, match="at revision 'v2'"):
        Engine("someone/tiny", download_dir=Path(folder), revision="v2", **OPTIONS)


def test_a_revision_is_the_models_not_that_of_another_tokenizer(hub, tiny_model, tokenizer_dir):
    folder = hub("someone/tiny", "v1", tiny_model)
    hub("someone/words", "main", tokenizer_dir)
    with pytest.raises(ModelError, match="no tokenizer files"):
        Engine("someone/tiny", download_dir=folder, revision="v1", **OPTIONS)
    options = OPTIONS | {"download_dir": folder, "revision": "v1", "tokenizer_path": "someone/words"}
    with Engine("someone/tiny", **options) as engine:
        assert engine.tokenizer.encode("abba") == [3, 2, 1]


@pytest.mark.parametrize("how", ["context_length", "json_model_override_args"])
def test_a_shorter_context(tiny_model, how):
    option = {"context_length": 16, "json_model_override_args": '{"max_position_embeddings": 16}'}[how]
    with Engine(tiny_model, skip_tokenizer_init=True, **OPTIONS, **{how: option}) as engine:
        assert engine.generate(input_ids=[5] * 10, sampling_params={"max_new_tokens": 6}).prompt_tokens == 10
        with pytest.raises(RequestTooLongError, match="16 tokens"):
            engine.generate(input_ids=[5] * 10, sampling_params={"max_new_tokens": 7})


def test_overrides_change_the_model(tiny_model):
    options = OPTIONS | {"skip_tokenizer_init": True, "context_length": 600, "max_total_tokens": 640}
    with pytest.raises(ConfigError, match="exceeds the model's 512 tokens"):
        Engine(tiny_model, **options)
    longer = json.dumps({"max_position_embeddings": 700, "vocab_size": 5})
    with Engine(tiny_model, json_model_override_args=longer, **options) as engine:
        [token] = engine.generate(input_ids=[4] * 590, sampling_params={"max_new_tokens": 1}).token_ids
        assert token < 5
    with pytest.raises(ConfigError, match="json_model_override_args"):
        Engine(tiny_model, json_model_override_args="{", **options)


CODE = """
from transformers import PreTrainedTokenizer


class OwnTokenizer(PreTrainedTokenizer):
    vocab_files_names = {}

    @property
    def vocab_size(self):
        return 128

    def get_vocab(self):
        return {chr(i): i for i in range(128)}

    def _tokenize(self, text):
        return list(text)

    def _convert_token_to_id(self, token):
        return ord(token)

    def _convert_id_to_token(self, index):
        return chr(index)
"""


def test_code_of_a_tokenizer_runs_only_when_trusted(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    folder = tmp_path / "own"
    shutil.copytree(tiny_model, folder)
    (folder / "own.py").write_text(CODE)
    config = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.OwnTokenizer", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="trust_remote_code"):
        Engine(str(folder), **OPTIONS)
    with Engine(str(folder), trust_remote_code=True, **OPTIONS) as engine:
        assert engine.tokenizer.encode("Hi") == [72, 105]
        assert engine.generate("Hi", {"max_new_tokens": 1, "ignore_eos": True}).prompt_tokens == 2
