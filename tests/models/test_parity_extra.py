"""Parity with transformers beyond the plain cases: long positions, bf16, a family written by a user."""

from __future__ import annotations

import pytest
import torch

from rootlet.models.layers.attention import Attention
from rootlet.models.layers.decoder import CausalLM
from rootlet.models.layers.layers import PreNormLayer
from rootlet.models.layers.mlp import GatedMLP

from .driver import Driver
from .hf import (  # noqa: F401
    assert_logits_close,
    build_hf,
    build_ours,
    config_of,
    hf_logits,
    one_thread,
    random_ids,
    state_of,
)

SHORT = [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7]
LONG = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]


def longrope(short, long):
    return {"rope_type": "longrope", "short_factor": short, "long_factor": long}


@pytest.mark.parametrize(("context", "factors"), [(32, SHORT), (33, LONG)])
def test_longrope_uses_the_factors_of_the_context_length(context, factors):
    """The reference has the same factors on both sides, since old transformers never switch in Llama."""
    hf = build_hf("Llama", original_max_position_embeddings=32, rope_scaling=longrope(factors, factors))
    ours = build_ours(hf, rope_scaling=longrope(SHORT, LONG))
    ours.set_context_length(context)
    ids = random_ids(30, 6)
    assert_logits_close(Driver(ours, 16).run("a", ids, 7), hf_logits(hf, ids))


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "yarn", "factor": 4.0},
        {"rope_type": "linear", "factor": 4.0},
        {
            "rope_type": "llama3",
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    ],
    ids=lambda scaling: scaling["rope_type"],
)
def test_contexts_extended_by_rope_scaling(scaling):
    """A file that states the original length: ours goes on to the extended one, with the same rotation."""
    hf = build_hf("Llama", max_position_embeddings=16, rope_scaling=scaling)
    ours = build_ours(hf)
    assert ours.config.context_length == 64
    ids = random_ids(64, 8)
    assert_logits_close(Driver(ours, 16).run("a", ids, 24), hf_logits(hf, ids))


def test_dynamic_rope_past_the_original_length():
    """Decoding past the limit rotates each new token as transformers does when it arrives."""
    scaling = {"rope_type": "dynamic", "factor": 4.0}
    hf = build_hf("Llama", max_position_embeddings=16, rope_scaling=scaling)
    ours = build_ours(hf)
    assert ours.config.context_length == 64
    ids = random_ids(48, 7)
    got = Driver(ours, 16).run("a", ids, chunk=1)
    want = hf.generate(  # its cache has another name in every other release: generate() knows which
        torch.tensor([ids[:1]]),
        attention_mask=torch.ones(1, 1, dtype=torch.long),
        prefix_allowed_tokens_fn=lambda _, sent: [ids[len(sent) % len(ids)]],
        max_new_tokens=len(ids),
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    assert want.sequences[0, : len(ids)].tolist() == ids
    assert_logits_close(got, torch.cat(want.logits))


@pytest.mark.parametrize(
    ("family", "fields"), [("Llama", {}), ("Mistral", {"sliding_window": 5}), ("Qwen2", {})]
)
def test_bf16(family, fields):
    """In bf16 we are as near to the fp32 model as transformers is, or nearer: we round less often."""
    hf = build_hf(family, **fields)
    ids = random_ids(60, 8)
    exact = hf_logits(hf, ids)
    ours = Driver(build_ours(hf, torch.bfloat16), 16).run("a", ids, chunk=25)
    theirs = hf_logits(hf.to(torch.bfloat16), ids)
    assert ours.dtype == torch.float32
    assert torch.cosine_similarity(ours, theirs, dim=-1).min() > 0.98
    assert (ours - exact).square().mean() < 1.2 * (theirs - exact).square().mean()


class FusedAttention(Attention):
    """Attention whose checkpoint has q, k and v in one tensor."""

    def __init__(self, make, rotary, heads, **options):
        super().__init__(make, rotary, heads, **options)
        size = (heads.q + 2 * heads.kv) * heads.dim
        self.qkv = make.linear(make.config.hidden_size, {"qkv_proj": size}, split="out")


class FusedMLP(GatedMLP):
    """Feed-forward block whose checkpoint has gate and up in one tensor."""

    def __init__(self, make, size):
        super().__init__(make, size=size)
        self.gate_up = make.linear(make.config.hidden_size, {"gate_up_proj": 2 * size}, split="out")


class Phi3ForCausalLM(CausalLM):
    """A family in the way a user would write one: only public parts, no edit elsewhere."""

    def layer(self, index, make):
        window = self.config.read("sliding_window", int, None, null=True)
        return PreNormLayer(
            make.names,
            FusedAttention(make.at("self_attn"), self.rotary, make.heads, window=window),
            FusedMLP(make.at("mlp"), self.config.read("intermediate_size", int)),
            make.rms_norm(),
            make.rms_norm(),
        )


class StableLmForCausalLM(CausalLM):
    """A family with other norms, and with rotation of a part of each head."""

    def layer(self, index, make):
        return PreNormLayer(
            make.names,
            Attention(make.at("self_attn"), self.rotary, make.heads),
            GatedMLP(make.at("mlp")),
            make.layer_norm(),
            make.layer_norm(),
        )

    def final_norm(self, make):
        return make.layer_norm()


def assert_same_logits(model, hf):
    model.load_weights(state_of(hf).items())
    ids = random_ids(40, 9)
    assert_logits_close(Driver(model, 16).run("a", ids, 7), hf_logits(hf, ids))


def test_a_family_of_the_user_with_fused_checkpoint_tensors():
    hf = build_hf("Phi3", pad_token_id=0, sliding_window=11)
    assert_same_logits(Phi3ForCausalLM(config_of(hf), torch.float32, "cpu"), hf)


@pytest.mark.parametrize("factor", [0.25, 0.5, 1.0])
def test_a_family_of_the_user_with_another_norm_and_partial_rotation(factor):
    hf = build_hf("StableLm", partial_rotary_factor=factor)
    ours = StableLmForCausalLM(config_of(hf), torch.float32, "cpu")
    assert ours.rotary.config.rotary_dim == 16 * factor
    assert_same_logits(ours, hf)
