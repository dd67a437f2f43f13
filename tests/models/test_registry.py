"""Architecture names resolve to classes, and users can add theirs."""

from __future__ import annotations

import pytest
import torch

import rootlet
from rootlet.errors import ConfigError, ModelError
from rootlet.models import registry
from rootlet.models.build import build_model
from rootlet.models.config import ModelConfig
from rootlet.models.interface import Output
from rootlet.models.llama import LlamaForCausalLM
from rootlet.models.mistral import MistralForCausalLM
from rootlet.models.qwen2 import Qwen2ForCausalLM

RAW = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 10,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


class MyModel(LlamaForCausalLM):
    """A user's model."""


@pytest.fixture(autouse=True)
def _clean_registry(monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})


def windows(cls, **fields):
    model = cls(ModelConfig.from_dict({**RAW, **fields}), torch.float32, "cpu")
    return [layer.attention.scoring.window for layer in model.layers]


def test_built_in_families():
    assert registry.resolve(["LlamaForCausalLM"]).family is LlamaForCausalLM
    assert registry.resolve(["MistralForCausalLM"]).family is MistralForCausalLM
    assert registry.resolve(["Unknown", "Qwen2ForCausalLM"]).family is Qwen2ForCausalLM


def test_classifiers_and_bare_models_come_with_their_family():
    assert registry.resolve(["Qwen2ForSequenceClassification"]) == (Qwen2ForCausalLM, Output.SCORES)
    assert registry.resolve(["MistralModel"]) == (MistralForCausalLM, Output.STATES)
    assert registry.resolve(["LlamaEmbeddingModel"]) == registry.resolve(["LlamaModel"])
    assert registry.supported_architectures() == [
        "LlamaEmbeddingModel",
        "LlamaForCausalLM",
        "LlamaForSequenceClassification",
        "LlamaModel",
        "MistralForCausalLM",
        "MistralForSequenceClassification",
        "MistralModel",
        "Qwen2ForCausalLM",
        "Qwen2ForSequenceClassification",
        "Qwen2Model",
    ]


def test_a_registered_class_may_be_a_classifier():
    class Judge(LlamaForCausalLM):
        output = Output.SCORES

    rootlet.register_model("Judge", Judge)
    config = ModelConfig.from_dict({**RAW, "num_labels": 3})
    model = build_model(registry.resolve(["Judge"]), config, torch.float32, "cpu")
    assert model.output is Output.SCORES
    assert model.weight_shapes["score.weight"] == (3, 16)


def test_unknown_architecture_lists_the_supported_ones():
    rootlet.register_model("MyModel", MyModel)
    with pytest.raises(ModelError, match=r"\['Nope'\].*LlamaForCausalLM, .*MistralModel, MyModel, Qwen2"):
        registry.resolve(["Nope"])


def test_register():
    rootlet.register_model("MyModel", MyModel)
    assert registry.resolve(["MyModel"]) == (MyModel, None)
    assert "MyModel" in registry.supported_architectures()


@pytest.mark.parametrize("name", ["MyModel", "LlamaForCausalLM"])
def test_a_taken_name_needs_replace(name):
    registry.register_model("MyModel", LlamaForCausalLM)
    with pytest.raises(ConfigError, match=f"'{name}' is already registered"):
        registry.register_model(name, MyModel)
    registry.register_model(name, MyModel, replace=True)
    assert registry.resolve([name]).family is MyModel


def test_only_model_classes_can_be_registered():
    with pytest.raises(ConfigError, match="without forward, compute_logits"):
        registry.register_model("X", dict)
    with pytest.raises(ConfigError, match="needs a model class"):
        registry.register_model("X", "LlamaForCausalLM")


def test_unsupported_activation_is_refused_by_name():
    with pytest.raises(ModelError, match=r"hidden_act = 'relu6' is not supported. Supported: silu"):
        windows(LlamaForCausalLM, hidden_act="relu6")


def test_mistral_windows():
    assert windows(MistralForCausalLM) == [4096, 4096]
    assert windows(MistralForCausalLM, sliding_window=None) == [None, None]
    assert windows(MistralForCausalLM, sliding_window=7, layer_types=["sliding_attention"] * 2) == [7, 7]
    with pytest.raises(ModelError, match="sliding_attention in every layer"):
        windows(MistralForCausalLM, layer_types=["sliding_attention", "full_attention"])


def test_qwen2_windows():
    assert windows(Qwen2ForCausalLM, sliding_window=7, max_window_layers=0) == [None, None]
    on = {"use_sliding_window": True, "sliding_window": 7}
    assert windows(Qwen2ForCausalLM, **on, max_window_layers=1) == [None, 7]
    assert windows(Qwen2ForCausalLM, **on, layer_types=["sliding_attention", "full_attention"]) == [7, None]
    assert windows(Qwen2ForCausalLM, **on) == [None, None]  # the default starts at layer 28


@pytest.mark.parametrize(
    "fields",
    [
        {"layer_types": ["sliding_attention", "full_attention"]},  # windows are off
        {"use_sliding_window": True, "layer_types": ["full_attention"]},
        {"use_sliding_window": True, "layer_types": ["full_attention", "linear_attention"]},
        {"use_sliding_window": True, "sliding_window": None, "layer_types": ["sliding_attention"] * 2},
    ],
)
def test_qwen2_refuses_impossible_layer_types(fields):
    with pytest.raises(ModelError, match="layer_types"):
        windows(Qwen2ForCausalLM, **fields)
