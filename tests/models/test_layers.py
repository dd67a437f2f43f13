"""Loading weights: every name accounted for, merged and tied storage, memory, reloading."""

from __future__ import annotations

import itertools
import logging

import pytest
import torch

from rootlet.errors import WeightsError
from rootlet.models.config import ModelConfig
from rootlet.models.layers.attention import Attention
from rootlet.models.layers.make import Make, Ranks
from rootlet.models.layers.matrices import DENSE
from rootlet.models.layers.mlp import GatedMLP
from rootlet.models.layers.names import Names
from rootlet.models.layers.norm import LayerNorm
from rootlet.models.layers.weight_names import match_names
from rootlet.models.layers.weight_table import WeightTable
from rootlet.models.llama import LlamaForCausalLM
from rootlet.models.qwen2 import Qwen2ForCausalLM

RAW = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 11,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
Q, K = "model.layers.0.self_attn.q_proj.weight", "model.layers.1.self_attn.k_proj.weight"


def build(cls=LlamaForCausalLM, dtype=torch.float32, **fields):
    return cls(ModelConfig.from_dict({**RAW, **fields}), dtype, "cpu")


def make(**fields) -> Make:
    return Make(ModelConfig.from_dict(RAW), torch.float32, torch.device("cpu"), **fields)


def checkpoint(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in model.weight_shapes.items()}


def assert_holds(model, weights):
    for name, tensor in weights.items():
        assert torch.equal(model.get_weight(name), tensor), name


@pytest.mark.parametrize("order", [list, reversed, sorted])
@pytest.mark.parametrize(
    "fields", [{}, {"tie_word_embeddings": True}, {"attention_bias": True, "mlp_bias": True}]
)
def test_every_weight_comes_back_under_its_name(order, fields):
    model = build(**fields)
    weights = checkpoint(model)
    model.load_weights((name, weights[name]) for name in order(list(weights)))
    assert_holds(model, weights)
    assert model.get_weight("model.layers.9.mlp.up_proj.weight") is None


def test_nothing_is_allocated_before_loading():
    model = build()
    assert model.weight_nbytes == 0
    assert model.get_weight(Q) is None


@pytest.mark.parametrize("tied", [False, True])
def test_memory_while_loading_stays_within_the_model(tied):
    # whole panels, which rows may be kept in: nothing is filled up
    model = build(tie_word_embeddings=tied, vocab_size=64, hidden_size=32, intermediate_size=32)
    weights = checkpoint(model)
    total = sum(tensor.nbytes for tensor in weights.values())
    seen = []

    def stream():
        for name in sorted(weights):
            yield name, weights[name]
            seen.append(model.weight_nbytes)

    model.load_weights(stream())
    assert max(seen) <= model.weight_nbytes == total


def test_loading_converts_the_dtype():
    model = build(Qwen2ForCausalLM, torch.bfloat16)
    weights = checkpoint(model)
    model.load_weights(weights.items())
    assert_holds(model, {name: tensor.bfloat16() for name, tensor in weights.items()})


def test_all_problems_are_in_one_error():
    model = build()
    weights = checkpoint(model)
    del weights[Q], weights["model.norm.weight"]
    weights[K] = torch.zeros(8, 15)
    weights["model.layers.0.mlp.up_proj.weight"] = torch.zeros(24, 16, dtype=torch.int8)
    weights["model.layers.0.self_attn.q_proj.qweight"] = torch.zeros(1)
    twice = (EMBED, weights[EMBED])
    with pytest.raises(WeightsError) as caught:
        model.load_weights(itertools.chain(weights.items(), [twice]))
    message = str(caught.value)
    assert f"missing (2): {Q}, model.norm.weight;" in message
    assert "leftover (1): model.layers.0.self_attn.q_proj.qweight;" in message
    assert f"duplicate (1): {EMBED};" in message
    assert "misshapen (2): model.layers.0.mlp.up_proj.weight is torch.int8 [24, 16], expected" in message
    assert f"{K} is torch.float32 [8, 15], expected floating point [8, 16]." in message


def test_a_bias_that_the_config_denies_is_leftover():
    with_bias, without = build(attention_bias=True), build()
    with pytest.raises(WeightsError, match=r"leftover \(8\): .*q_proj.bias"):
        without.load_weights(checkpoint(with_bias).items())


def test_a_failed_load_can_be_repeated():
    model = build()
    weights = checkpoint(model)

    def torn():
        yield Q, weights[Q]
        raise OSError("torn file")

    with pytest.raises(OSError, match="torn file"):
        model.load_weights(torn())
    with pytest.raises(WeightsError, match="missing"):
        model.load_weights([(Q, weights[Q])])
    model.load_weights(weights.items())
    assert_holds(model, weights)


@pytest.mark.parametrize(
    "name", ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.layers.1.self_attn.masked_bias"]
)
def test_buffers_of_old_checkpoints_are_ignored(name):
    model = build()
    model.load_weights([*checkpoint(model).items(), (name, torch.zeros(3))])


def test_tied_head_holds_the_table_once():
    tied, untied = build(tie_word_embeddings=True), build()
    weights = checkpoint(tied)
    tied.load_weights(weights.items())
    untied.load_weights(checkpoint(untied).items())
    assert untied.weight_nbytes - tied.weight_nbytes == weights[EMBED].nbytes
    assert torch.equal(tied.get_weight(HEAD), weights[EMBED])
    ids = torch.tensor([3, 0, 10, 3])
    assert torch.equal(tied.embedding.rows(ids), weights[EMBED][ids])


@pytest.mark.parametrize("first", [EMBED, HEAD])
def test_tied_and_both_present_the_embedding_counts(first, caplog):
    model = build(tie_word_embeddings=True)
    weights = {**checkpoint(model), HEAD: torch.zeros(11, 16)}
    with caplog.at_level(logging.WARNING, "rootlet"):
        model.load_weights([(first, weights.pop(first)), *weights.items()])
    assert model.get_weight(HEAD).any()
    assert "tie_word_embeddings" in caplog.text


def test_tied_and_both_present_and_equal_is_silent(caplog):
    model = build(tie_word_embeddings=True)
    weights = checkpoint(model)
    model.load_weights([*weights.items(), (HEAD, weights[EMBED].clone())])
    assert not caplog.records


def test_tied_with_the_head_only():
    model = build(tie_word_embeddings=True)
    weights = checkpoint(model)
    weights[HEAD] = weights.pop(EMBED)
    model.load_weights(weights.items())
    assert_holds(model, weights)


def test_tied_with_neither_and_with_a_misshapen_head():
    model = build(tie_word_embeddings=True)
    weights = checkpoint(model)
    table = weights.pop(EMBED)
    with pytest.raises(WeightsError, match=rf"missing \(1\): {EMBED}"):
        model.load_weights(weights.items())
    with pytest.raises(WeightsError, match=rf"misshapen \(1\): {HEAD} .*expected floating point \[11, 16\]"):
        model.load_weights([*weights.items(), (EMBED, table), (HEAD, table[1:])])


def test_weights_do_not_alias_the_checkpoint():
    model = build()
    weights = checkpoint(model)
    model.load_weights(weights.items())
    kept = {name: tensor.clone() for name, tensor in weights.items()}
    for tensor in weights.values():
        tensor.zero_()
    assert_holds(model, kept)


def test_loading_again_copies_into_the_same_memory():
    model = build(attention_bias=True)
    model.load_weights(checkpoint(model).items())
    layer = model.layers[0]
    packed, bias, norm = (
        layer.attention.qkv.segments[0].matrix,
        layer.attention.qkv.bias.data,
        layer.input_norm.weight.data,
    )
    addresses = bias.data_ptr(), norm.data_ptr()
    new = checkpoint(model, seed=1)
    model.load_weights(new.items())
    assert layer.attention.qkv.segments[0].matrix is packed
    assert (layer.attention.qkv.bias.data.data_ptr(), layer.input_norm.weight.data.data_ptr()) == addresses
    assert_holds(model, new)


def test_rows_of_a_merged_weight_can_be_replaced_alone():
    """The seam for updates of single tensors: what was not sent stays."""
    layer = make().linear(4, {"a": 2, "b": 3}, bias=True)
    slots = dict(layer.weights())
    weights = {name: torch.randn(slot.shape) for name, slot in slots.items()}
    WeightTable(slots.items(), {}).load(weights.items())
    slots["b.weight"].load(torch.ones(3, 4))
    layer.segments[0].finish()
    assert torch.equal(slots["a.weight"].get(), weights["a.weight"])
    assert torch.equal(slots["b.weight"].get(), torch.ones(3, 4))


def test_weights_are_ordinary_tensors_in_any_mode():
    model = build()
    parameters = {name: torch.nn.Parameter(tensor) for name, tensor in checkpoint(model).items()}
    with torch.inference_mode():
        model.load_weights(parameters.items())
    for name in parameters:
        weight = model.get_weight(name)
        assert not weight.is_inference()
        assert not weight.requires_grad


@pytest.mark.parametrize("bias", [False, True])
def test_linear_multiplies_all_rows_at_once(bias):
    layer = make().linear(4, {"a": 2, "b": 3}, bias=bias)
    WeightTable(layer.weights(), {}).load((name, torch.randn(slot.shape)) for name, slot in layer.weights())
    x = torch.randn(5, 4)
    slots = {name: slot.get() for name, slot in layer.weights()}
    parts = [x @ slots[f"{name}.weight"].T + slots.get(f"{name}.bias", torch.zeros(1)) for name in "ab"]
    torch.testing.assert_close(layer.forward(x, None), torch.cat(parts, dim=1))


@pytest.mark.parametrize("bias", [False, True])
def test_a_norm_with_mean_and_bias(bias):
    norm = LayerNorm(8, 1e-3, torch.float32, torch.device("cpu"), bias=bias)
    weights = {name: torch.randn(slot.shape) for name, slot in norm.weights()}
    assert list(weights) == ["weight", "bias"][: 1 + bias]
    WeightTable(norm.weights(), {}).load(weights.items())
    x, residual = torch.randn(5, 8), torch.randn(5, 8)
    total = residual + x
    centred = total - total.mean(-1, keepdim=True)
    want = centred / (centred.square().mean(-1, keepdim=True) + 1e-3).sqrt() * weights["weight"]
    want += weights.get("bias", 0)
    torch.testing.assert_close(norm.forward(total), want)
    torch.testing.assert_close(norm.add_forward(x, residual), want)
    assert torch.equal(residual, total)
    assert norm.for_products() is None


class Recording:
    """A scheme that remembers what it was asked for."""

    def __init__(self):
        self.asked = {}

    def matrices(self, rows, in_features, dtype, device):
        self.asked[tuple(rows)] = (*rows.values(), in_features)
        return DENSE.matrices(rows, in_features, dtype, device)


def test_a_scheme_is_told_the_full_names():
    scheme = Recording()
    at = make(scheme=scheme).at("model").at("layers.3")
    assert at.prefix == "model.layers.3"
    attention = Attention(at.at("self_attn"), None, at.heads)
    GatedMLP(at.at("mlp"))
    make(scheme=scheme).head({"lm_head": 11})
    qkv = tuple(f"model.layers.3.self_attn.{name}_proj" for name in "qkv")
    assert scheme.asked == {
        qkv: (16, 8, 8, 16),
        ("model.layers.3.self_attn.o_proj",): (16, 16),
        ("model.layers.3.mlp.gate_proj", "model.layers.3.mlp.up_proj"): (24, 24, 16),
        ("model.layers.3.mlp.down_proj",): (16, 24),
        ("lm_head",): (11, 16),
    }
    assert at.matrices[:2] == [*attention.qkv.segments, *attention.output.segments]


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_divide_rows_of_one_product_and_columns_of_the_next(size):
    """Of one checkpoint each rank keeps its part; what the ranks compute adds up."""
    whole = GatedMLP(make(), bias=True)
    weights = {name: torch.randn(slot.shape) for name, slot in whole.weights()}
    parts = [GatedMLP(make(ranks=Ranks(rank, size)), bias=True) for rank in range(size)]
    for mlp in (whole, *parts):
        assert {name: slot.shape for name, slot in mlp.weights()} == {
            name: tensor.shape for name, tensor in weights.items()
        }
        WeightTable(mlp.weights(), {}).load(weights.items())
    for rank, mlp in enumerate(parts):
        width = 24 // size
        mine = slice(rank * width, (rank + 1) * width)
        kept = {name: slot.get() for name, slot in mlp.weights()}
        assert torch.equal(kept["up_proj.weight"], weights["up_proj.weight"][mine])
        assert torch.equal(kept["up_proj.bias"], weights["up_proj.bias"][mine])
        assert torch.equal(kept["down_proj.weight"], weights["down_proj.weight"][:, mine])
    x = torch.randn(3, 16)
    results = [mlp.forward(x, None, None) for mlp in (whole, *parts)]
    torch.testing.assert_close(sum(results[1:]), results[0])


def test_ranks_divide_heads():
    at = make(ranks=Ranks(1, 2))
    attention = Attention(at, None, at.heads)
    weights = {name: torch.randn(slot.shape) for name, slot in attention.weights()}
    WeightTable(attention.weights(), {}).load(weights.items())
    kept = {name: slot.get() for name, slot in attention.weights()}
    assert attention.num_heads == 2
    assert torch.equal(kept["q_proj.weight"], weights["q_proj.weight"][8:])
    assert torch.equal(kept["k_proj.weight"], weights["k_proj.weight"][4:])
    assert torch.equal(kept["o_proj.weight"], weights["o_proj.weight"][:, 8:])


def test_a_family_may_have_names_of_its_own():
    class Renamed(LlamaForCausalLM):
        names = Names(
            body="transformer", embedding="wte", layer="h.{}", final_norm="ln_f", attention="attn", q="query"
        )

    model = build(Renamed, tie_word_embeddings=True)
    weights = checkpoint(model)
    assert {name for name in weights if "h.1" not in name} >= {
        "transformer.wte.weight",
        "transformer.ln_f.weight",
        "transformer.h.0.attn.query.weight",
        "transformer.h.0.mlp.down_proj.weight",
    }
    model.load_weights(weights.items())
    assert torch.equal(model.get_weight(HEAD), weights["transformer.wte.weight"])


def test_names_of_bare_models_are_translated_by_the_familys_table():
    names = Names(body="transformer", embedding="wte")
    rename = match_names(["wte.weight", "h.0.x"], ["transformer.wte.weight"], names)
    assert rename("h.0.x") == "transformer.h.0.x"
    assert match_names(["embed_tokens.weight"], ["transformer.wte.weight"], names) is None


@pytest.mark.parametrize(("scale", "soft_cap"), [(1.0, None), (0.25, None), (1.0, 2.0), (0.5, 3.0)])
def test_a_head_may_scale_and_bound_its_logits(scale, soft_cap):
    head = make().head({"lm_head": 11}, scale=scale, soft_cap=soft_cap)
    [(_, slot)] = head.weights()
    weight, hidden = torch.randn(slot.shape), torch.randn(3, 16)
    slot.load(weight)
    want = hidden @ weight.T * scale
    if soft_cap is not None:
        want = soft_cap * torch.tanh(want / soft_cap)
    torch.testing.assert_close(head.forward(hidden), want)
