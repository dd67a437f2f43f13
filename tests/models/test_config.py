"""config.json is read strictly: types, defaults, derived values, refusals by name."""

from __future__ import annotations

import math

import pytest
import torch

from rootlet.errors import ModelError
from rootlet.models.config import ModelConfig
from rootlet.models.layers.rope_config import RopeConfig
from rootlet.models.rope_fields import merge_overrides

ORIGINAL = "original_max_position_embeddings"
YARN = {"rope_type": "yarn", "factor": 4.0}
MINIMAL = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def config(**fields) -> ModelConfig:
    return ModelConfig.from_dict({**MINIMAL, **fields})


def test_minimal_file():
    got = config()
    assert (got.num_layers, got.num_heads, got.num_kv_heads, got.head_dim) == (2, 4, 4, 16)
    assert got.context_length == got.max_position_embeddings == 2048
    assert got.dtype is None
    assert (got.eos_token_ids, got.bos_token_id, got.pad_token_id) == ((), None, None)


@pytest.mark.parametrize("field", MINIMAL)
def test_required_fields(field):
    with pytest.raises(ModelError, match=f"field '{field}' is missing"):
        ModelConfig.from_dict({name: value for name, value in MINIMAL.items() if name != field})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": "64"}, "'hidden_size' must be an integer, got '64'"),
        ({"hidden_size": 64.0}, "'hidden_size' must be an integer, got 64.0"),
        ({"hidden_size": True}, "'hidden_size' must be an integer, got True"),
        ({"hidden_size": None}, "'hidden_size' must be an integer, got None"),
        ({"vocab_size": 0}, "'vocab_size' must be at least 1, got 0"),
        ({"architectures": "LlamaForCausalLM"}, "'architectures' must be a list of str"),
        (
            {"num_key_value_heads": 3},
            r"num_attention_heads \(4\) must be a multiple of num_key_value_heads \(3\)",
        ),
        ({"hidden_size": 63}, r"hidden_size \(63\) must be a multiple of num_attention_heads \(4\)"),
        ({"torch_dtype": "int8"}, "dtype = 'int8' is not supported. Supported: float32, float16, bfloat16"),
        ({"eos_token_id": "2"}, "'eos_token_id' must be an integer, a list of integers or null"),
        ({"eos_token_id": [2, None]}, "'eos_token_id' must be"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quant_method 'gptq' is not supported"),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, "'factor' must be a number"),
        (
            {"rope_scaling": {"type": "linear", "factor": 1e300}},
            "context of 2.048e.303 tokens is not possible",
        ),
        ({"rope_scaling": {"type": "linear", "factor": math.nan}}, "'factor' must be a finite number"),
        ({"max_position_embeddings": 2**31}, "at most 2147483647"),
        (
            {"vocab_size": 10**5000},
            "'vocab_size' must be a finite number of 64 bits, got an integer of 16610",
        ),
        ({"hidden_size": "9" * 10**6}, r"'hidden_size' must be an integer, got '9+\.\.\. \(str\)"),
    ],
)
def test_refused(fields, message):
    with pytest.raises(ModelError, match=message):
        config(**fields)


def test_null_means_derived():
    got = config(head_dim=None, num_key_value_heads=None, eos_token_id=None, torch_dtype=None)
    assert (got.head_dim, got.num_kv_heads, got.eos_token_ids, got.dtype) == (16, 4, (), None)


def test_explicit_head_dim_frees_the_hidden_size():
    assert config(hidden_size=63, head_dim=8).head_dim == 8


def test_other_spellings():
    raw = {"architectures": ["X"], "vocab_size": 9, "n_embd": 8, "n_layer": 3, "n_head": 2, "n_positions": 77}
    got = ModelConfig.from_dict(raw)
    assert (got.hidden_size, got.num_layers, got.num_heads, got.context_length) == (8, 3, 2, 77)


@pytest.mark.parametrize(("value", "want"), [(2, (2,)), ([2, 7], (2, 7)), (0, (0,)), (-1, ()), ([], ())])
def test_eos_may_be_one_or_many(value, want):
    assert config(eos_token_id=value).eos_token_ids == want


@pytest.mark.parametrize(
    ("fields", "want"),
    [
        ({"torch_dtype": "bfloat16"}, torch.bfloat16),
        ({"dtype": "float16"}, torch.float16),
        ({"dtype": "torch.float32", "torch_dtype": "bfloat16"}, torch.float32),
    ],
)
def test_dtype(fields, want):
    assert config(**fields).dtype == want


@pytest.mark.parametrize(
    ("fields", "want"),
    [
        ({"max_position_embeddings": 100}, 100),
        ({"max_position_embeddings": 100, "seq_length": 90}, 90),
        ({"seq_length": 90, "max_sequence_length": 80, "model_max_length": 70}, 80),
        ({"max_position_embeddings": 100, "rope_scaling": {"type": "linear", "factor": 2.5}}, 250),
        ({"max_position_embeddings": 100, "rope_scaling": {"rope_type": "dynamic", "factor": 2}}, 200),
        ({"max_position_embeddings": 100, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 100),
        ({"max_position_embeddings": 100, "rope_parameters": {"rope_type": "linear", "factor": 2.0}}, 200),
        (
            {
                "max_position_embeddings": 100,
                "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 25},
            },
            100,
        ),
        ({"max_position_embeddings": 100, "rope_scaling": {"rope_type": "yarn", "factor": None}}, 100),
        (
            {
                "max_position_embeddings": 100,
                "original_max_position_embeddings": 50,
                "rope_scaling": {"type": "longrope", "factor": 2.0},
            },
            100,
        ),
        ({"rope_scaling": None, "rope_theta": 1e6}, 2048),
        *(
            ({"max_position_embeddings": 100, key: {name: kind, "factor": 4.0, ORIGINAL: 100}}, 400)
            for key, name in [
                ("rope_scaling", "type"),
                ("rope_scaling", "rope_type"),
                ("rope_parameters", "rope_type"),
            ]
            for kind in ("yarn", "dynamic", "linear", "llama3", "longrope")
        ),
        # what Qwen3's card adds: the file states a little more than the original length
        (
            {"max_position_embeddings": 125, "rope_scaling": {"type": "yarn", "factor": 4.0, ORIGINAL: 100}},
            400,
        ),
        # Llama 3.2: a factor of 32 that is not meant to be used up
        (
            {"max_position_embeddings": 160, "rope_scaling": {"type": "llama3", "factor": 32, ORIGINAL: 10}},
            160,
        ),
        ({"max_position_embeddings": 100, ORIGINAL: 100, "rope_scaling": {"type": "su", "factor": 3.0}}, 300),
    ],
)
def test_context_length(fields, want):
    assert config(**fields).context_length == want


@pytest.mark.parametrize(
    ("file", "override", "want"),
    [
        # (rope type, theta, context length) of a file of 100 positions
        ({"rope_theta": 7.0}, {"rope_scaling": {"type": "yarn", "factor": 4.0}}, ("yarn", 7.0, 400)),
        ({"rope_theta": 7.0}, {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, ("yarn", 7.0, 400)),
        ({"rope_parameters": {"rope_theta": 7.0}}, {"rope_scaling": YARN}, ("yarn", 7.0, 400)),
        ({"rope_parameters": {"rope_theta": 7.0}}, {"rope_parameters": YARN}, ("yarn", 7.0, 400)),
        ({"rope_parameters": {**YARN, "rope_theta": 7.0}}, {"rope_scaling": None}, ("default", 7.0, 100)),
        ({"rope_scaling": YARN, "rope_theta": 7.0}, {"rope_parameters": None}, ("default", 7.0, 100)),
        ({"rope_scaling": YARN}, {"rope_parameters": {"rope_theta": 9.0}}, ("default", 9.0, 100)),
        ({"rope_parameters": {**YARN, "rope_theta": 7.0}}, {"rope_theta": 9.0}, ("yarn", 9.0, 400)),
        ({"rope_scaling": YARN, ORIGINAL: 50}, {"rope_scaling": {**YARN, ORIGINAL: 80}}, ("yarn", 1e4, 320)),
    ],
)
def test_overrides_of_the_rotation_count_in_either_form(file, override, want):
    got = ModelConfig.from_dict(
        merge_overrides({**MINIMAL, "max_position_embeddings": 100, **file}, override)
    )
    rope = RopeConfig.from_model(got)
    assert (rope.rope_type, rope.theta, got.context_length) == want


def test_families_read_their_own_fields_under_the_same_rules():
    got = config(sliding_window=None, alpha=3)
    assert got.read("sliding_window", int, 4096, null=True) is None
    assert got.read("absent", int, 5) == 5
    assert got.read("alpha", float) == 3.0
    assert isinstance(got.read("alpha", float), float)
    with pytest.raises(ModelError, match="'sliding_window' must be an integer, got None"):
        got.read("sliding_window", int, 4096)
    with pytest.raises(ModelError, match=r"alpha = 3 is not supported. Supported: 1, 2"):
        got.read("alpha", int, choices=(1, 2))
