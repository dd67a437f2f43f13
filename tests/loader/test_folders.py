"""Folders of safetensors and torch.save files: round trips, and everything that can be wrong with them."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from rootlet.errors import ConfigError, ModelError, WeightsError
from rootlet.models.loader import load_model
from rootlet.models.loader.checkpoint import named_tensors
from rootlet.models.loader.safetensors import open_safetensors
from rootlet.models.loader.shards import find_shards
from rootlet.models.loader.torch_bin import open_torch_bin

from .tiny import assert_streams, assert_weights, random_model

OPEN = {
    "safetensors": ("model", ".safetensors", open_safetensors),
    "pt": ("pytorch_model", ".bin", open_torch_bin),
}


def save(folder, model, kind, num_files=1, dtype=torch.float32):
    """Save a transformers model by hand: the file names and the index are what the loader must understand."""
    stem, suffix, _ = OPEN[kind]
    model.config.save_pretrained(folder)
    state = {name: tensor.to(dtype).clone() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings and kind == "safetensors":
        del state["lm_head.weight"]  # as transformers saves it; torch.save files keep both names
    names = sorted(state)
    files = [f"{stem}-{i + 1:05}-of-{num_files:05}{suffix}" for i in range(num_files)]
    if num_files == 1:
        files = [stem + suffix]
    else:
        weight_map = {name: files[i % num_files] for i, name in enumerate(names)}
        (folder / f"{stem}{suffix}.index.json").write_text(
            json.dumps({"metadata": {}, "weight_map": weight_map})
        )
    for i, file in enumerate(files):
        part = {name: state[name] for name in names[i::num_files]}
        if kind == "safetensors":
            save_file(part, folder / file, metadata={"format": "pt"})
        else:
            torch.save(part, folder / file)
    return folder


def open_checkpoint(folder, kind):
    stem, suffix, open_files = OPEN[kind]
    return open_files(find_shards(folder, stem, suffix))


@pytest.mark.parametrize("kind", ["safetensors", "pt"])
@pytest.mark.parametrize("num_files", [1, 3])
@pytest.mark.parametrize("fixture", ["llama", "qwen2"])
def test_round_trip(tmp_path, request, kind, num_files, fixture):
    model = request.getfixturevalue(fixture)
    loaded = load_model(save(tmp_path, model, kind, num_files))
    assert loaded.source.format == kind
    assert_weights(loaded.model, model.state_dict(), torch.float32)


def test_what_transformers_saves_itself(tmp_path, llama):
    llama.save_pretrained(tmp_path, max_shard_size="60KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    loaded = load_model(str(tmp_path), dtype="bfloat16")
    assert_weights(loaded.model, llama.state_dict(), torch.bfloat16)
    assert loaded.generation_config["eos_token_id"] == 2
    assert loaded.config.eos_token_ids == (2,)


def test_files_of_torch_before_1_6(tmp_path, llama):
    llama.config.save_pretrained(tmp_path)
    torch.save(llama.state_dict(), tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert_weights(load_model(tmp_path).model, llama.state_dict(), torch.float32)


def test_safetensors_come_first(tmp_path, llama, qwen2):
    save(tmp_path, llama, "pt")
    save(tmp_path, llama, "safetensors")
    assert load_model(tmp_path).source.format == "safetensors"
    assert load_model(tmp_path, load_format="pt").source.format == "pt"


@pytest.mark.parametrize("kind", ["safetensors", "pt"])
@pytest.mark.parametrize("shards_left", [False, True])
def test_a_single_file_goes_before_an_index(tmp_path, llama, caplog, kind, shards_left):
    """As in a folder that was saved in shards and then as one file; transformers does the same."""
    save(tmp_path, random_model("llama", initializer_range=0.1), kind, 3)
    if not shards_left:
        for file in tmp_path.glob("*-of-*"):
            file.unlink()
    save(tmp_path, llama, kind)
    assert_weights(load_model(tmp_path).model, llama.state_dict(), torch.float32)
    assert "an index of other files" in caplog.text


def test_an_index_that_names_the_single_file_is_not_stale(tmp_path, llama, caplog):
    save(tmp_path, llama, "safetensors")
    names = dict.fromkeys(llama.state_dict(), "model.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    load_model(tmp_path)
    assert not caplog.records


def test_variants_are_left_aside(tmp_path, llama):
    """model.fp16.safetensors beside shards without an index; it is taken where nothing else is there."""
    save(tmp_path, llama, "safetensors", 2)
    (tmp_path / "model.safetensors.index.json").unlink()
    half = {name: tensor.half() for name, tensor in llama.state_dict().items()}
    save_file(half, tmp_path / "model.fp16.safetensors")
    assert_weights(load_model(tmp_path).model, llama.state_dict(), torch.float32)
    for file in tmp_path.glob("*-of-*"):
        file.unlink()
    assert_weights(load_model(tmp_path, dtype="float32").model, half, torch.float32)


def test_files_without_index(tmp_path, llama):
    save(tmp_path, llama, "safetensors", 2)
    (tmp_path / "model.safetensors.index.json").unlink()
    save_file({"tok_embeddings.weight": torch.zeros(2)}, tmp_path / "consolidated.safetensors")
    assert_weights(load_model(tmp_path).model, llama.state_dict(), torch.float32)


@pytest.mark.parametrize("kind", ["safetensors", "pt"])
@pytest.mark.parametrize("num_files", [1, 3])
def test_streams_one_tensor_at_a_time(tmp_path, llama, kind, num_files):
    checkpoint = open_checkpoint(save(tmp_path, llama, kind, num_files), kind)
    assert assert_streams(named_tensors(checkpoint)) == len(llama.state_dict())


@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_progress(tmp_path, llama, kind):
    calls = []
    save(tmp_path, llama, kind, 2)
    load_model(tmp_path, progress=lambda done, total: calls.append((done, total)))
    done = [call[0] for call in calls]
    total = calls[0][1]
    assert {call[1] for call in calls} == {total}
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, total)
    if kind == "safetensors":
        assert total == sum(tensor.nbytes for tensor in llama.state_dict().values())
    else:
        assert total == sum(file.stat().st_size for file in tmp_path.glob("*.bin"))


def test_missing_shard(tmp_path, llama):
    save(tmp_path, llama, "safetensors", 3)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"index\.json names 1 file.*missing: model-00002-of-00003"):
        load_model(tmp_path)


@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_index_promises_a_tensor_the_shard_lacks(tmp_path, llama, kind):
    save(tmp_path, llama, kind, 2)
    [index] = tmp_path.glob("*.index.json")
    content = json.loads(index.read_text())
    content["weight_map"]["model.layers.9.extra.weight"] = sorted(content["weight_map"].values())[0]
    index.write_text(json.dumps(content))
    with pytest.raises(WeightsError, match=r"00001-of-00002.*model\.layers\.9\.extra\.weight"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    "content", ["", "[]", '{"weight_map": 3}', '{"weight_map": {}}', '{"weight_map": {"a": "../b"}}']
)
def test_broken_index(tmp_path, llama, content):
    save(tmp_path, llama, "safetensors", 2)
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(WeightsError, match=r"index\.json"):
        load_model(tmp_path)


@pytest.mark.parametrize("kind", ["safetensors", "pt"])
@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, -1])
def test_truncated_file(tmp_path, llama, kind, keep):
    save(tmp_path, llama, kind, 2)
    file = sorted(tmp_path.glob("*model-*"))[1]
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(WeightsError, match=f"{file.name}.*truncated or damaged"):
        load_model(tmp_path)


def test_damaged_header(tmp_path, llama):
    save(tmp_path, llama, "safetensors")
    file = tmp_path / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[8:12] = b"\xff\xff\xff\xff"
    file.write_bytes(data)
    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        load_model(tmp_path)


def test_pickled_code_is_not_run(tmp_path, llama):
    llama.config.save_pretrained(tmp_path)
    torch.save({"model.norm.weight": pytest.raises}, tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="more than tensors"):
        load_model(tmp_path)


def test_a_tensor_in_two_files(tmp_path, llama):
    save(tmp_path, llama, "safetensors", 2)
    (tmp_path / "model.safetensors.index.json").unlink()
    shutil.copy(tmp_path / "model-00001-of-00002.safetensors", tmp_path / "z.safetensors")
    with pytest.raises(WeightsError, match=r"z\.safetensors: the tensor .* is also in model-00001"):
        load_model(tmp_path)


def test_missing_and_leftover_tensors(tmp_path, llama):
    save(tmp_path, llama, "safetensors")
    state = dict(llama.state_dict())
    state["model.layers.7.odd.weight"] = state.pop("model.layers.1.mlp.up_proj.weight")
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"model\.layers\.1\.mlp\.up_proj\.weight.*model\.layers\.7\.odd"):
        load_model(tmp_path)


def test_folder_without_weights(tmp_path, llama):
    llama.config.save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=r"has no \*\.safetensors, pytorch_model\*\.bin or GGUF"):
        load_model(tmp_path)
    with pytest.raises(WeightsError, match=r"has no pytorch_model\*\.bin files"):
        load_model(tmp_path, load_format="pt")
    with pytest.raises(WeightsError, match="has no GGUF file"):
        load_model(tmp_path, load_format="gguf")


def test_folder_without_config(tmp_path, llama):
    save(tmp_path, llama, "safetensors")
    (tmp_path / "config.json").unlink()
    with pytest.raises(ModelError, match=r"no config\.json"):
        load_model(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("content", ["{", "[1]"])
def test_unreadable_json(tmp_path, llama, name, content):
    save(tmp_path, llama, "safetensors")
    (tmp_path / name).write_text(content)
    with pytest.raises(ModelError, match=name):
        load_model(tmp_path)


def test_overrides(tmp_path, llama):
    save(tmp_path, llama, "safetensors")
    loaded = load_model(tmp_path, json_model_override_args={"max_position_embeddings": 128})
    assert loaded.config.context_length == 128
    loaded = load_model(tmp_path, json_model_override_args='{"architectures": ["MistralForCausalLM"]}')
    assert type(loaded.model).__name__ == "MistralForCausalLM"
    assert_weights(loaded.model, llama.state_dict(), torch.float32)
    with pytest.raises(WeightsError, match="misshapen"):
        load_model(tmp_path, json_model_override_args={"intermediate_size": 100})


@pytest.mark.parametrize("value", ["{", "[1, 2]", "3", 5, [("a", 1)]])
def test_impossible_overrides(tmp_path, value):
    with pytest.raises(ConfigError, match="json_model_override_args"):
        load_model(tmp_path, json_model_override_args=value)


def test_dtype_of_a_config_that_names_none(tmp_path, llama):
    save(tmp_path, llama, "safetensors", dtype=torch.bfloat16)
    config = json.loads((tmp_path / "config.json").read_text())
    config.pop("dtype", None)
    config.pop("torch_dtype", None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_model(tmp_path).model.dtype == torch.bfloat16
