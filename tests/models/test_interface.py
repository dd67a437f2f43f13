"""What the engine uses of a model: a class of the required methods alone, and what is refused of it."""

from __future__ import annotations

import pytest
import torch

import rootlet
from rootlet.errors import ConfigError, ModelError
from rootlet.models import interface, registry
from rootlet.models.build import build_model
from rootlet.models.config import ModelConfig
from rootlet.models.interface import REQUIRED, CompletedModel, Output, complete
from rootlet.models.llama import LlamaForCausalLM
from rootlet.models.registry import resolve

from .toys import PROMPTS, TINY, save_toy


class Least:
    """A model of which there is only what must be."""

    def __init__(self, config, dtype, device):
        inner = LlamaForCausalLM(config, dtype, device)
        for name in REQUIRED:
            setattr(self, "_" + name, getattr(inner, name))

    def forward(self, inp, kv):
        return self._forward(inp, kv)

    def compute_logits(self, hidden):
        return self._compute_logits(hidden)

    def load_weights(self, named):
        self._load_weights(named)

    def get_weight(self, name):
        return self._get_weight(name)

    def kv_spec(self, page_size):
        return self._kv_spec(page_size)

    def set_context_length(self, num_tokens):
        self._set_context_length(num_tokens)


@pytest.fixture(autouse=True)
def least(monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})
    rootlet.register_model("Least", Least)


def build(cls=Least, **methods):
    model = cls(ModelConfig.from_dict({"architectures": ["Least"], **TINY}), torch.float32, "cpu")
    for name, method in methods.items():
        setattr(model, name, method)
    return complete(model, torch.float32, TINY["hidden_size"])


def test_a_class_with_the_required_methods_generates(tmp_path):
    folder, _ = save_toy(tmp_path, "LlamaForCausalLM")
    params = {"temperature": 0, "max_new_tokens": 8}

    def tokens(**options):
        with rootlet.Engine(
            folder, device="cpu", skip_tokenizer_init=True, max_total_tokens=512, **options
        ) as engine:
            return [o.token_ids for o in engine.generate(input_ids=PROMPTS, sampling_params=params)]

    assert tokens(json_model_override_args='{"architectures": ["Least"]}') == tokens()


def test_defaults():
    model = build()
    assert isinstance(model, CompletedModel)
    assert (model.output, model.dtype, model.hidden_size) == (Output.LOGITS, torch.float32, 32)
    assert not model.multiplies_in_kernels
    assert model.weight_tensors() == ()


def test_what_a_class_has_is_used():
    asked = []
    model = build(
        compute_embeddings=lambda hidden: hidden + 1,
        use_batch_invariant_kernels=lambda: asked.append("invariant"),
        offload_layers=asked.append,
        place_weights=asked.append,
        weight_tensors=lambda: [torch.ones(2)],
        weight_shapes={"w": (2,)},
        output=Output.STATES,
    )
    model.check_embeddings()
    assert torch.equal(model.compute_embeddings(torch.zeros(1)), torch.ones(1))
    model.use_batch_invariant_kernels()
    model.offload_layers(7)
    model.place_weights(len)
    assert asked == ["invariant", 7, len]
    assert torch.equal(model.weight_tensors()[0], torch.ones(2))
    assert model.weight_shapes == {"w": (2,)}
    assert model.output is Output.STATES


def test_what_a_class_lacks_is_refused_by_name():
    model = build()
    with pytest.raises(ConfigError, match="is_embedding=True needs a method compute_embeddings, and Least"):
        model.check_embeddings()
    with pytest.raises(ConfigError, match="compute_embeddings, and Least has none"):
        model.compute_embeddings(torch.zeros(1))
    with pytest.raises(ConfigError, match=r"deterministic=True needs .* Least has none"):
        model.use_batch_invariant_kernels()
    with pytest.raises(ConfigError, match=r"cpu_offload_gb=0\.5 needs .* Least has none"):
        model.offload_layers(2**29)
    with pytest.raises(ConfigError, match=r"enable_memory_saver=True needs .* place_weights, and Least has"):
        model.place_weights(len)
    with pytest.raises(ModelError, match=r"Least\.weight_shapes"):
        model.weight_shapes  # noqa: B018


def test_a_family_of_ours_lacks_nothing():
    config = ModelConfig.from_dict({"architectures": ["LlamaForCausalLM"], **TINY})
    model = build_model(resolve(["LlamaForCausalLM"]), config, torch.float32, "cpu")
    assert type(model) is LlamaForCausalLM
    assert {"output", "compute_embeddings", "offload_layers"} <= set(interface._OPTIONAL)
