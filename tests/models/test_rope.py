"""Rotary tables against the published formulas, in float64, and their settings in both forms of the file."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rootlet.errors import ModelError
from rootlet.models.config import ModelConfig
from rootlet.models.layers.rope_config import RopeConfig
from rootlet.models.layers.rotary import RotaryTable, build_cos_sin

BASE = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 10,
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LONGROPE = {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}


def rope(scaling=None, **fields) -> RopeConfig:
    return RopeConfig.from_model(ModelConfig.from_dict({**BASE, "rope_scaling": scaling, **fields}))


def angles(inv_freq, count: int) -> np.ndarray:
    return np.arange(count)[:, None] * np.asarray(inv_freq)


def assert_table(table: torch.Tensor, inv_freq, scale: float = 1.0) -> None:
    """fp32 frequencies are off by 1e-7 of themselves, so angles by that times the position."""
    want = angles(inv_freq, table.shape[0])
    want = np.concatenate([np.cos(want), np.sin(want)], axis=1) * scale
    assert table.dtype == torch.float32
    np.testing.assert_allclose(table.numpy(), want, atol=1e-6 * table.shape[0])


def plain(theta: float = 10000.0, dim: int = 16) -> np.ndarray:
    return theta ** -(np.arange(0, dim, 2) / dim)


def test_default():
    assert_table(build_cos_sin(rope(rope_theta=500.0), 50), plain(500.0))


def test_position_zero_does_not_rotate():
    table = build_cos_sin(rope(), 1)
    assert table.tolist() == [[1.0] * 8 + [0.0] * 8]


def test_partial_rotation_uses_the_rotated_part_as_dimension():
    assert_table(build_cos_sin(rope(partial_rotary_factor=0.5), 50), plain(dim=8))


def test_linear():
    assert_table(build_cos_sin(rope({"type": "linear", "factor": 4}), 50), plain() / 4)


def test_dynamic_is_plain_within_the_original_length_whatever_the_table():
    config = rope({"type": "dynamic", "factor": 4.0})
    assert_table(build_cos_sin(config, 64), plain())
    assert torch.equal(build_cos_sin(config, 200)[:64], build_cos_sin(config, 64))


def test_dynamic_beyond_the_original_length():
    table = build_cos_sin(rope({"type": "dynamic", "factor": 4.0}), 256)
    for position in (64, 100, 255):
        base = 10000.0 * (4.0 * (position + 1) / 64 - 3.0) ** (16 / 14)
        want = position * plain(base)
        np.testing.assert_allclose(table[position, :8].numpy(), np.cos(want), atol=1e-4)
        np.testing.assert_allclose(table[position, 8:].numpy(), np.sin(want), atol=1e-4)


def test_rows_do_not_depend_on_the_size_of_the_table():
    for scaling in (None, LLAMA3, {"type": "linear", "factor": 2}, {"type": "dynamic", "factor": 2}):
        config = rope(scaling)
        torch.testing.assert_close(
            build_cos_sin(config, 300)[:77], build_cos_sin(config, 77), atol=1e-6, rtol=0
        )


def test_llama3():
    inv_freq = []
    for frequency in plain(1000.0):
        wavelength = 2 * math.pi / frequency
        if wavelength < 32 / 4:
            inv_freq.append(frequency)
        elif wavelength > 32:
            inv_freq.append(frequency / 8)
        else:
            smooth = (32 / wavelength - 1) / (4 - 1)
            inv_freq.append((1 - smooth) * frequency / 8 + smooth * frequency)
    assert len({round(a / b, 3) for a, b in zip(inv_freq, plain(1000.0))}) == 3  # all three cases occur
    assert_table(build_cos_sin(rope(LLAMA3, rope_theta=1000.0), 60), inv_freq)


def yarn_frequencies(factor: float, original: int, fast: float = 32, slow: float = 1, truncate: bool = True):
    def pair(rotations):
        return 16 * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(10000.0))

    low, high = pair(fast), pair(slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 15)
    ramp = np.clip((np.arange(8) - low) / (high - low), 0, 1)
    return plain() / factor * ramp + plain() * (1 - ramp)


@pytest.mark.parametrize(
    ("fields", "want", "scale"),
    [
        ({"factor": 4.0}, yarn_frequencies(4.0, 64), 0.1 * math.log(4) + 1),
        (
            {"factor": 4.0, "original_max_position_embeddings": 4096},
            yarn_frequencies(4.0, 4096),
            0.1 * math.log(4) + 1,
        ),
        ({"original_max_position_embeddings": 16}, yarn_frequencies(4.0, 16), 0.1 * math.log(4) + 1),
        ({"factor": 4.0, "attention_factor": 0.5}, yarn_frequencies(4.0, 64), 0.5),
        (
            {"factor": 4.0, "beta_fast": 4, "beta_slow": 0.5},
            yarn_frequencies(4.0, 64, 4, 0.5),
            0.1 * math.log(4) + 1,
        ),
        (
            {"factor": 4.0, "truncate": False, "beta_fast": 4},
            yarn_frequencies(4.0, 64, 4, truncate=False),
            0.1 * math.log(4) + 1,
        ),
        (
            {"factor": 4.0, "mscale": 0.7, "mscale_all_dim": 0.3},
            yarn_frequencies(4.0, 64),
            (0.07 * math.log(4) + 1) / (0.03 * math.log(4) + 1),
        ),
        ({"factor": 0.5}, yarn_frequencies(0.5, 64), 1.0),
    ],
)
def test_yarn(fields, want, scale):
    assert_table(build_cos_sin(rope({"rope_type": "yarn", **fields}), 60), want, scale)


@pytest.mark.parametrize(("count", "factor"), [(32, 1.0), (33, 2.0)])
def test_longrope(count, factor):
    config = rope(LONGROPE, original_max_position_embeddings=32)
    scale = math.sqrt(1 + math.log(2) / math.log(32))
    assert_table(build_cos_sin(config, count), plain() / factor, scale)


def test_su_is_an_old_name_of_longrope():
    assert rope({**LONGROPE, "type": "su"}) == rope(LONGROPE)


@pytest.mark.parametrize(
    "scaling",
    [LLAMA3, {"rope_type": "linear", "factor": 2.0}, {"rope_type": "yarn", "factor": 2.0}],
    ids=lambda scaling: scaling["rope_type"],
)
def test_both_forms_of_the_file_agree(scaling):
    new = ModelConfig.from_dict({**BASE, "rope_parameters": {**scaling, "rope_theta": 7.0}})
    assert RopeConfig.from_model(new) == rope(scaling, rope_theta=7.0)
    assert RopeConfig.from_model(new).theta == 7.0


def test_an_override_in_the_old_form_keeps_the_base():
    new = {"rope_theta": 7.0, "rope_type": "default", "partial_rotary_factor": 0.5}
    config = rope({"rope_type": "linear", "factor": 2.0}, rope_parameters=new)
    assert (config.rope_type, config.theta, config.rotary_dim) == ("linear", 7.0, 8)


def test_notes_of_the_training_are_ignored():
    assert rope({"type": "linear", "factor": 2.0, "finetuned": True}) == rope(
        {"type": "linear", "factor": 2.0}
    )


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        (
            {"type": "mrope", "mrope_section": [1]},
            "type = 'mrope' is not supported. Supported: 'default', 'linear'",
        ),
        ({"rope_type": "linear"}, r"rope_scaling \(linear\): field 'factor' is missing"),
        ({"rope_type": "linear", "factor": "2"}, "'factor' must be a number"),
        ({"rope_type": "linear", "factor": 0}, r"factor \(0.0\) and rope_theta \(10000.0\) must be above 0"),
        ({"rope_type": "linear", "factor": -1.0}, "'factor' must be at least 0"),
        ({"rope_type": "default", "mrope_section": [1]}, r"\['mrope_section'\] are not supported"),
        ({**LLAMA3, "high_freq_factor": 1.0}, "low_freq_factor and high_freq_factor are both 1.0"),
        ({**LONGROPE, "long_factor": [1.0] * 7}, "long_factor must have 8 numbers"),
        ({**LONGROPE, "short_factor": 1.0}, "'short_factor' must be a list of float"),
        ({"rope_type": "yarn", "truncate": 1}, "'truncate' must be true or false"),
        ("linear", "'rope_scaling' must be an object or null"),
    ],
)
def test_refused(scaling, message):
    with pytest.raises(ModelError, match=message):
        rope(scaling)


@pytest.mark.parametrize("factor", [0.3, 0.0, 1.5])
def test_refused_rotary_dim(factor):
    with pytest.raises(ModelError, match=f"partial_rotary_factor {factor}"):
        rope(partial_rotary_factor=factor, head_dim=10)


def test_table_is_rebuilt_only_for_another_size():
    table = RotaryTable(rope(), 32, torch.device("cpu"))
    first = table.cos_sin
    table.resize(32)
    assert table.cos_sin is first
    table.resize(48)
    assert table.cos_sin.shape == (48, 16)
