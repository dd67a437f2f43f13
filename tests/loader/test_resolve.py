"""Finding a model: paths, the Hub's cache without a network, and what is said when there is nothing."""

from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import save_file

from rootlet.errors import ConfigError, WeightsError
from rootlet.models.loader import load_model, resolve_model
from rootlet.models.loader.dtype import choose_dtype
from rootlet.models.tokenizer import load_tokenizer

from .tiny import assert_weights

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def cache(tmp_path, llama) -> Path:
    """A download folder as the Hub's client leaves it, with one model at revisions main and v1."""
    repo = tmp_path / "models--someone--tiny"
    snapshot = repo / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    for name in ("main", "v1"):
        (repo / "refs" / name).write_text(COMMIT)
    llama.config.save_pretrained(snapshot)
    save_file(dict(llama.state_dict()), snapshot / "model.safetensors")
    return tmp_path


def test_cached_model_without_network(cache, llama, offline):
    loaded = load_model("someone/tiny", download_dir=cache)
    assert (loaded.source.format, loaded.source.revision) == ("safetensors", COMMIT)
    assert_weights(loaded.model, llama.state_dict(), torch.float32)
    assert resolve_model("someone/tiny", revision="v1", download_dir=cache).revision == COMMIT
    assert resolve_model("someone/tiny", "dummy", download_dir=cache).format == "dummy"
    with pytest.raises(WeightsError, match="'someone/tiny' has no pytorch_model"):
        resolve_model("someone/tiny", "pt", download_dir=cache)
    with pytest.raises(WeightsError, match=r"owner/name/file\.gguf"):
        resolve_model("someone/tiny", "gguf", download_dir=cache)


def test_incomplete_cache(cache, offline):
    snapshot = cache / "models--someone--tiny" / "snapshots" / COMMIT
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00001.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match="missing: model-00001-of-00001"):
        resolve_model("someone/tiny", download_dir=cache)


@pytest.mark.parametrize("name", ["someone/other", "someone/other/file.gguf", "gpt2"])
def test_not_in_the_cache(cache, offline, name):
    with pytest.raises(ConfigError, match=r"cannot be reached.*Download the model first"):
        resolve_model(name, download_dir=cache)
    with pytest.raises(ConfigError, match=r"cannot be reached.*Download the model first"):
        load_tokenizer(name, download_dir=cache)


def test_revision_not_in_the_cache(cache, offline):
    with pytest.raises(ConfigError, match="at revision 'v2'"):
        resolve_model("someone/tiny", revision="v2", download_dir=cache)


@pytest.mark.parametrize(
    "name", ["/no/such/folder", "./missing", "a/b/c", "~/nothing", "has space", "x.gguf/", ""]
)
def test_neither_path_nor_name(name):
    with pytest.raises(ConfigError, match="no such file or folder"):
        load_model(name)


@pytest.mark.parametrize("name", ["a--b/y", "a..b", "owner/name.git", "name-"])
def test_names_the_hub_does_not_allow(name, offline):
    with pytest.raises(ConfigError, match="nor a valid Hub name"):
        resolve_model(name)


def test_a_path_object_is_never_a_hub_name(tmp_path):
    with pytest.raises(ConfigError, match="no such file or folder"):
        resolve_model(Path("someone/tiny"))


def test_unknown_load_format(tmp_path):
    with pytest.raises(
        ConfigError, match="load_format must be one of auto, safetensors, pt, gguf, dummy, got 'npz'"
    ):
        load_model(tmp_path, load_format="npz")


F16, BF16, F32 = torch.float16, torch.bfloat16, torch.float32


@pytest.mark.parametrize(
    ("asked", "checkpoint", "device", "expected"),
    [
        ("auto", F32, "cpu", F32),
        ("auto", BF16, "cpu", BF16),
        ("auto", F16, "cpu", BF16),
        ("auto", None, "cpu", BF16),
        ("auto", torch.float64, "cpu", BF16),
        ("auto", F32, "cuda", F16),
        ("auto", F16, "cuda:0", F16),
        ("auto", BF16, "cuda", BF16),
        ("float", F16, "cpu", F32),
        ("float32", None, "cpu", F32),
        ("bfloat16", F32, "cpu", BF16),
        (torch.bfloat16, F32, "cpu", BF16),
        ("half", F32, "cuda", F16),
        ("float16", None, "cuda", F16),
    ],
)
def test_dtype(asked, checkpoint, device, expected):
    assert choose_dtype(asked, checkpoint, device) == expected


@pytest.mark.parametrize("asked", ["half", "float16", torch.float16])
def test_float16_is_refused_on_the_cpu(asked):
    with pytest.raises(ConfigError, match=r"not available on the CPU.*bfloat16"):
        choose_dtype(asked, F16, "cpu")


@pytest.mark.parametrize("asked", ["fp16", "int8", "", torch.int8])
def test_unknown_dtype(asked):
    with pytest.raises(ConfigError, match="dtype must be auto or one of half, float16"):
        choose_dtype(asked, BF16, "cpu")
