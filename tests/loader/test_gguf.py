"""GGUF files: header, metadata to config, tensors; damaged files; the real SmolLM2."""

from __future__ import annotations

import contextlib
import math
import struct
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rootlet.errors import ConfigError, MissingDependencyError, ModelError, RootletError, WeightsError
from rootlet.models.loader import load_model
from rootlet.models.loader.checkpoint import named_tensors
from rootlet.models.loader.gguf import open_gguf, read_rope_factors
from rootlet.models.loader.gguf_config import config_from_gguf, llama3_rope_from_factors
from rootlet.models.loader.gguf_file import read_gguf

from .tiny import assert_streams, assert_weights, finish, metadata_writer, random_model, write_model

Q = gguf.GGMLQuantizationType


def through_package(values: torch.Tensor, quantization: Q) -> torch.Tensor:
    """What the gguf package makes of ``values`` after a trip through ``quantization``."""
    data = gguf.quants.quantize(values.numpy(), quantization)
    return torch.from_numpy(np.ascontiguousarray(gguf.quants.dequantize(data, quantization)))


def config_of(path: Path) -> dict:
    file = read_gguf(path)
    return config_from_gguf(file, read_rope_factors(file))


# tensors


@pytest.mark.parametrize("quantization", [Q.F32, Q.F16, Q.BF16, Q.Q8_0, Q.Q4_0])
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_round_trip(tmp_path, request, kind, quantization):
    model = request.getfixturevalue(kind)
    loaded = load_model(write_model(tmp_path / "m.gguf", model, kind, quantization), dtype="float32")
    expected = {
        name: through_package(tensor, quantization) if tensor.dim() > 1 else tensor
        for name, tensor in model.state_dict().items()
    }
    assert_weights(loaded.model, expected, torch.float32)
    assert type(loaded.model).__name__ == type(model).__name__
    assert (loaded.source.format, loaded.source.is_gguf) == ("gguf", True)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_same_weights_as_transformers_reads(tmp_path, request, kind):
    """The row order of q and k, undone independently by transformers."""
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    model = request.getfixturevalue(kind)
    path = write_model(tmp_path / "m.gguf", model, kind)
    theirs = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"]
    assert_weights(load_model(path, dtype="float32").model, theirs, torch.float32)


def test_biases_of_q_and_k_are_reordered_too(tmp_path):
    model = random_model("llama", attention_bias=True, mlp_bias=True, head_dim=32)
    loaded = load_model(
        write_model(tmp_path / "m.gguf", model, "llama", extra=lambda w: w.add_key_length(32)),
        dtype="float32",
    )
    assert loaded.config.head_dim == 32
    assert_weights(loaded.model, model.state_dict(), torch.float32)


@pytest.mark.parametrize("kind", [Q.Q4_0, Q.Q5_1, Q.Q8_0, Q.Q2_K, Q.Q4_K, Q.Q5_K, Q.Q6_K, Q.IQ4_XS])
@pytest.mark.parametrize("rows", [1, 37, 300])
def test_expanding_in_pieces_is_expanding_at_once(tmp_path, llama, kind, rows):
    """Random blocks of every common type, in sizes below, above and not dividing into a piece."""
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    data = np.random.default_rng(0).integers(0, 60, (rows, 512 // block * block_bytes), np.uint8)
    writer = metadata_writer(tmp_path / "m.gguf", llama, "llama")
    writer.add_tensor("token_embd.weight", data, raw_dtype=kind)
    finish(writer)
    [(name, tensor)] = named_tensors(open_gguf(read_gguf(tmp_path / "m.gguf"), 4, 2))
    assert (name, tensor.shape) == ("model.embed_tokens.weight", (rows, 512))
    assert torch.equal(tensor, torch.from_numpy(gguf.quants.dequantize(data, kind)))


def test_auto_dtype_is_bfloat16(tmp_path, llama):
    loaded = load_model(write_model(tmp_path / "m.gguf", llama, "llama"))
    assert_weights(loaded.model, llama.state_dict(), torch.bfloat16)


@pytest.mark.parametrize("quantization", [Q.F32, Q.Q8_0])
def test_streams_one_tensor_at_a_time(tmp_path, llama, quantization):
    file = read_gguf(write_model(tmp_path / "m.gguf", llama, "llama", quantization))
    assert assert_streams(named_tensors(open_gguf(file, 4, 2))) == len(llama.state_dict())


def test_progress(tmp_path, llama):
    calls = []
    path = write_model(tmp_path / "m.gguf", llama, "llama", Q.Q8_0)
    load_model(path, progress=lambda done, total: calls.append((done, total)))
    stored = sum(int(tensor.n_bytes) for tensor in gguf.GGUFReader(path).tensors)
    assert calls[0] == (0, stored)
    assert calls[-1] == (stored, stored)
    assert calls == sorted(calls)


def test_one_file_in_a_folder(tmp_path, llama):
    write_model(tmp_path / "m.gguf", llama, "llama")
    assert load_model(tmp_path).source.path == tmp_path / "m.gguf"
    write_model(tmp_path / "n.gguf", llama, "llama")
    with pytest.raises(WeightsError, match=r"several GGUF files.*m\.gguf, n\.gguf"):
        load_model(tmp_path)


def test_recognised_by_content(tmp_path, llama):
    path = write_model(tmp_path / "blob", llama, "llama")
    assert load_model(path).source.format == "gguf"
    (tmp_path / "text").write_text("not a model")
    with pytest.raises(ConfigError, match="not GGUF"):
        load_model(tmp_path / "text")
    with pytest.raises(ConfigError, match=r"is a GGUF file, but load_format is 'safetensors'"):
        load_model(path, load_format="safetensors")


def test_overrides(tmp_path, llama):
    path = write_model(tmp_path / "m.gguf", llama, "llama")
    assert (
        load_model(path, json_model_override_args={"max_position_embeddings": 64}).config.context_length == 64
    )


def test_without_the_package(tmp_path, llama, monkeypatch):
    path = write_model(tmp_path / "m.gguf", llama, "llama")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'gguf>=0\.17\.1'"):
        load_model(path)
    assert load_model(path, load_format="dummy").config.num_layers == 2


def test_unknown_tensor(tmp_path, llama):
    extra = lambda w: w.add_tensor("blk.0.ffn_gate_exps.weight", np.zeros((2, 4), np.float32))  # noqa: E731
    with pytest.raises(WeightsError, match=r"ffn_gate_exps.*no place in a llama model"):
        load_model(write_model(tmp_path / "m.gguf", llama, "llama", extra=extra))


# metadata


def test_config(tmp_path, llama):
    def extra(writer):
        writer.add_rope_freq_base(5000.0)
        writer.add_eot_token_id(5)
        writer.add_pad_token_id(3)

    config = config_of(write_model(tmp_path / "m.gguf", llama, "llama", extra=extra))
    for name in (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "vocab_size",
        "num_key_value_heads",
        "max_position_embeddings",
        "tie_word_embeddings",
        "hidden_act",
    ):
        assert config[name] == getattr(llama.config, name), name
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["rms_norm_eps"] == pytest.approx(1e-6)
    assert (config["rope_theta"], config["rope_scaling"]) == (5000.0, None)
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (1, [2, 5], 3)


def test_linear_rope(tmp_path, llama):
    def extra(writer):
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(4.0)

    path = write_model(tmp_path / "m.gguf", llama, "llama", extra=extra)
    assert config_of(path)["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    assert load_model(path).config.context_length == 1024


def test_yarn_rope(tmp_path, llama):
    def extra(writer):
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(4.0)
        writer.add_rope_scaling_orig_ctx_len(128)
        writer.add_float32("llama.rope.scaling.yarn_beta_fast", 16.0)
        writer.add_rope_scaling_attn_factors(0.5)

    scaling = config_of(write_model(tmp_path / "m.gguf", llama, "llama", extra=extra))["rope_scaling"]
    assert scaling.pop("attention_factor") == pytest.approx(0.5 * (0.1 * math.log(4) + 1))
    assert scaling == {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 128,
        "beta_fast": 16.0,
    }


def test_partial_rotation(tmp_path, llama):
    path = write_model(tmp_path / "m.gguf", llama, "llama", extra=lambda w: w.add_rope_dimension_count(8))
    assert config_of(path)["partial_rotary_factor"] == 0.5


def llama3_factors(factor, low, high, length, theta, dim) -> list[float]:
    """The divisors as Meta's reference code computes them, in float32 as a GGUF stores them."""
    divisors = []
    for i in range(dim // 2):
        wavelength = 2 * math.pi * theta ** (2 * i / dim)
        if wavelength < length / high:
            divisors.append(1.0)
        elif wavelength > length / low:
            divisors.append(factor)
        else:
            smooth = (length / wavelength - low) / (high - low)
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    return np.float32(divisors).tolist()


@given(
    factor=st.sampled_from([2.0, 8.0, 32.0]) | st.floats(1.5, 64.0),
    high=st.floats(3.0, 8.0),
    length=st.sampled_from([2048, 4096, 8192, 16384]),
    dim=st.sampled_from([64, 96, 128]),
    theta=st.sampled_from([1e4, 5e5]),
)
@settings(deadline=None, max_examples=60)
def test_llama3_parameters_come_back_from_the_factors(factor, high, length, dim, theta):
    scaling = llama3_rope_from_factors(llama3_factors(factor, 1.0, high, length, theta, dim), theta, dim)
    assert scaling["rope_type"] == "llama3"
    assert scaling["factor"] == pytest.approx(factor, rel=1e-5)
    assert scaling["high_freq_factor"] == pytest.approx(high, rel=1e-3)
    assert scaling["original_max_position_embeddings"] == pytest.approx(length, rel=1e-3)


def test_rope_factors_of_a_file(tmp_path):
    factors = llama3_factors(8.0, 1.0, 4.0, 8192, 500000.0, 64)

    def extra(writer):
        writer.add_key_length(64)
        writer.add_rope_freq_base(500000.0)
        writer.add_tensor("rope_freqs.weight", np.float32(factors))

    model = random_model("llama", head_dim=64)
    loaded = load_model(write_model(tmp_path / "m.gguf", model, "llama", extra=extra))
    assert loaded.config.raw["rope_scaling"] == {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


@pytest.mark.parametrize(
    "factors",
    [[1.0] * 31 + [0.5], [1.0, 8.0] * 16, [1.0] * 30 + [2.0, 8.0], [1.0] * 16 + [8.0] * 16, [2.0] * 3],
)
def test_factors_of_another_kind(factors):
    with pytest.raises(ModelError, match=r"rope_freqs\.weight"):
        llama3_rope_from_factors(factors, 10000.0, 64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.add_expert_count(8), r"llama\.expert_count = 8 is not supported"),
        (lambda w: w.add_logit_scale(0.5), r"llama\.logit_scale = 0\.5"),
        (lambda w: w.add_sliding_window(64), r"llama\.attention\.sliding_window = 64"),
        (lambda w: w.add_string("llama.rope.scaling.type", "longrope"), "'longrope' is not supported"),
        (lambda w: w.add_uint16("split.count", 3), "one of 3 parts"),
        (lambda w: w.add_head_count([4, 2]), "head_count differs from layer to layer"),
        (lambda w: w.add_block_count(0), r"llama\.block_count must be a positive number, got 0"),
    ],
)
def test_refused_metadata(tmp_path, llama, change, message):
    def extra(writer):
        for name in ("llama.attention.head_count", "llama.block_count"):
            if name.split(".")[-1] in message:  # a key can be added only once
                del writer.kv_data[0][name]
        change(writer)

    with pytest.raises(ModelError, match=message):
        load_model(write_model(tmp_path / "m.gguf", llama, "llama", extra=extra))


def test_refused_architecture(tmp_path, llama):
    with pytest.raises(ModelError, match=r"'mamba' is not supported; supported: llama, qwen2"):
        load_model(write_model(tmp_path / "m.gguf", llama, "mamba"))


# header


def test_header_agrees_with_the_package(tmp_path, llama):
    values = {
        "x.text": "naïve 漢字",
        "x.strings": ["a", "", "ü" * 300],
        "x.floats": [0.5, -1.0],
        "x.flag": True,
        "x.double": 0.1,
        **{f"x.int{bits}": -3 for bits in (8, 16, 32, 64)},
        **{f"x.uint{bits}": 3 for bits in (8, 16, 32, 64)},
    }

    def extra(writer):
        add = {"text": writer.add_string, "flag": writer.add_bool, "double": writer.add_float64}
        for name, value in values.items():
            kind = name.removeprefix("x.")
            method = (
                writer.add_array
                if isinstance(value, list)
                else add.get(kind) or getattr(writer, f"add_{kind}")
            )
            method(name, value)
        writer.add_custom_alignment(64)

    path = write_model(tmp_path / "m.gguf", llama, "llama", Q.Q8_0, extra)
    ours, theirs = read_gguf(path), gguf.GGUFReader(path)
    assert ours.metadata.keys() == {name for name in theirs.fields if not name.startswith("GGUF.")}
    assert {name: ours.metadata[name] for name in values} == values
    assert ours.metadata["llama.embedding_length"] == 64
    for tensor in theirs.tensors:
        found = ours.tensors[tensor.name]
        assert found.shape == tuple(reversed(tensor.shape.tolist()))
        assert (found.offset, found.ggml_type) == (tensor.data_offset, tensor.tensor_type)


@pytest.fixture(scope="module")
def small_file(tmp_path_factory, llama) -> Path:
    return write_model(tmp_path_factory.mktemp("gguf") / "m.gguf", llama, "llama", Q.Q8_0)


def load_bytes(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    file = read_gguf(path)
    config = config_from_gguf(file, read_rope_factors(file))
    for _ in named_tensors(open_gguf(file, config["num_attention_heads"], config["num_key_value_heads"])):
        pass


@given(fraction=st.floats(0, 1, exclude_max=True))
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_truncation_is_a_weights_error(tmp_path, small_file, fraction):
    data = small_file.read_bytes()
    with pytest.raises(WeightsError, match=r"m\.gguf"):
        load_bytes(tmp_path / "m.gguf", data[: int(fraction * len(data))])


@given(changes=st.lists(st.tuples(st.integers(0, 2500), st.integers(0, 255)), min_size=1, max_size=4))
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_header_never_fails_otherwise(tmp_path, small_file, changes):
    """Whatever the bytes say, there is either a model or an error of ours (no hang, no MemoryError)."""
    data = bytearray(small_file.read_bytes())
    for position, value in changes:
        data[position] = value
    with contextlib.suppress(RootletError):
        load_bytes(tmp_path / "m.gguf", bytes(data))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "0 bytes are too few"),
        (b"GGML" + bytes(40), "not a GGUF file"),
        (b"GGUF" + struct.pack("<I", 1) + bytes(40), "GGUF version 1; supported"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(40), "big-endian"),
    ],
)
def test_other_files(tmp_path, data, message):
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    with pytest.raises(WeightsError, match=message):
        load_model(path)


# the real model


def test_smollm2(smollm2_gguf):
    """Every tensor equals the gguf package's own expansion of it, once q and k are put in order."""
    loaded = load_model(smollm2_gguf)
    assert loaded.generation_config == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    assert loaded.config.context_length == 8192
    file = read_gguf(smollm2_gguf)
    data = np.memmap(smollm2_gguf, np.uint8, mode="r")
    expected = {}
    for hf, ours in (
        ("model.embed_tokens", "token_embd"),
        ("model.layers.0.self_attn.q_proj", "blk.0.attn_q"),
        ("model.layers.29.self_attn.k_proj", "blk.29.attn_k"),
        ("model.layers.29.self_attn.v_proj", "blk.29.attn_v"),
        ("model.layers.7.mlp.down_proj", "blk.7.ffn_down"),
        ("model.norm", "output_norm"),
    ):
        info = file.tensors[f"{ours}.weight"]
        kind = Q(info.ggml_type)
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        raw = data[info.offset :][: math.prod(info.shape) // block * block_bytes]
        values = gguf.quants.dequantize(raw.reshape(info.shape[0] if len(info.shape) > 1 else 1, -1), kind)
        values = values.reshape(info.shape)
        if "attn_q" in ours or "attn_k" in ours:
            heads = info.shape[0] // 64
            order = [
                64 * head + 2 * j + half for head in range(heads) for half in range(2) for j in range(32)
            ]
            values = values[order]
        expected[f"{hf}.weight"] = torch.from_numpy(np.array(values))
    for name, values in expected.items():
        assert torch.equal(loaded.model.get_weight(name), values.bfloat16()), name
