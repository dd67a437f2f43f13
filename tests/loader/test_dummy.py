"""Random weights: reproducible, independent of order, and of a size a model can run with."""

from __future__ import annotations

import pytest
import torch

from rootlet.errors import ModelError
from rootlet.models.loader import load_model
from rootlet.models.loader.checkpoint import named_tensors
from rootlet.models.loader.dummy import make_dummy
from rootlet.models.registry import register_model

from .tiny import random_model

SHAPES = {
    "a.weight": (8, 16),
    "b.weight": (8, 16),
    "norm.weight": (16,),
    "a.bias": (8,),
    "big.weight": (1200, 1024),
}


def tensors(shapes, **options):
    return dict(named_tensors(make_dummy(shapes, torch.float32, **options)))


def test_a_tensor_depends_on_its_name_shape_and_seed_alone():
    state = torch.random.get_rng_state()
    everything = tensors(SHAPES)
    for name in reversed(SHAPES):
        assert torch.equal(tensors({name: SHAPES[name]})[name], everything[name])
    assert not torch.equal(everything["a.weight"], everything["b.weight"])
    assert not torch.equal(tensors(SHAPES, seed=1)["a.weight"], everything["a.weight"])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_sizes():
    values = tensors(SHAPES)
    assert values["big.weight"].std().item() == pytest.approx(1024**-0.5, rel=0.01)
    assert values["norm.weight"].mean().item() == pytest.approx(1.0, abs=0.05)
    assert values["a.bias"].abs().max() < 0.2
    assert len(torch.unique(values["big.weight"], dim=0)) == 1200


def test_integers_are_drawn_from_all_that_their_type_has():
    shapes = {**SHAPES, "a.scale": (8,)}
    whole = tensors(shapes, dtypes={"big.weight": torch.int8, "a.scale": torch.float16})
    assert {name: tensor.dtype for name, tensor in whole.items() if tensor.dtype != torch.float32} == {
        "big.weight": torch.int8,
        "a.scale": torch.float16,
    }
    counts = torch.bincount(whole["big.weight"].flatten().long() + 128, minlength=256)
    assert counts.min() > 0.8 * counts.float().mean()
    assert torch.equal(whole["b.weight"], tensors(SHAPES)["b.weight"])


def test_only_a_config_is_needed(tmp_path, llama):
    llama.config.save_pretrained(tmp_path)
    first, second = (load_model(tmp_path, load_format="dummy", dtype="float32").model for _ in range(2))
    shapes = {name: tuple(tensor.shape) for name, tensor in llama.state_dict().items()}
    assert first.weight_shapes == shapes
    with_dtype = {"torch_dtype": "float32"}
    assert (
        load_model(tmp_path, load_format="dummy", json_model_override_args=with_dtype).model.dtype
        == torch.float32
    )
    for name in shapes:
        assert torch.equal(first.get_weight(name), second.get_weight(name))


def test_activations_stay_finite_at_any_depth(tmp_path):
    """The same random weights in transformers: hidden states of a deep model neither vanish nor overflow."""
    model = random_model("llama", num_hidden_layers=40)
    model.config.save_pretrained(tmp_path)
    loaded = load_model(tmp_path, load_format="dummy", dtype="float32")
    model.load_state_dict({name: loaded.model.get_weight(name) for name in loaded.model.weight_shapes})
    with torch.no_grad():
        out = model(torch.arange(64)[None], output_hidden_states=True)
    assert out.logits.std() > 0.1
    assert max(hidden.abs().max() for hidden in out.hidden_states) < 1000


def test_a_class_that_does_not_name_its_weights(tmp_path, llama):
    class Silent:
        forward = compute_logits = load_weights = get_weight = kv_spec = set_context_length = lambda self: (
            None
        )

        def __init__(self, config, dtype, device):
            pass

    register_model("SilentForCausalLM", Silent, replace=True)
    llama.config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"Silent\.weight_shapes"):
        load_model(
            tmp_path, load_format="dummy", json_model_override_args={"architectures": ["SilentForCausalLM"]}
        )
