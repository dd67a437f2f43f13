"""A KV kind is one file: layers that keep eight numbers of a token, beside layers of ordinary attention.

The model's class hands its kind out with its spec, and nothing is registered but the class. Every token is
that of a plain torch model over the whole sequence.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F

import rootlet
from rootlet.cache.kv_kind import KVKind, KVPlanner
from rootlet.cache.kv_spec import KVGroup, Plane
from rootlet.engine.build.backends import make_backend
from rootlet.engine.config import EngineConfig
from rootlet.errors import ConfigError
from rootlet.kernels.upload import upload
from rootlet.models import registry
from rootlet.models.config import ModelConfig
from rootlet.models.layers.attention import Attention
from rootlet.models.layers.decoder import CausalLM
from rootlet.models.layers.layers import PreNormLayer
from rootlet.models.layers.mlp import GatedMLP
from rootlet.models.layers.part import Part

from ..models.hf import one_thread  # noqa: F401
from ..models.toys import NUM_TOKENS, PROMPTS, TINY, greedy, rotated, save_toy

WIDTH = 8


class LatentPlan(NamedTuple):
    """What a step's tokens see: ``lens`` [T] tokens of the sequences in rows ``slots`` [T] of ``pages``."""

    pages: torch.Tensor
    slots: torch.Tensor
    lens: torch.Tensor

    def attend(self, q, latents):
        """q ``[T, H, 8]`` scores latents ``[num_pages, page_size, 8]``, which are the values too."""
        seen = latents[self.pages[self.slots.long()].long()].flatten(1, 2)
        scores = torch.einsum("thw,tkw->thk", q, seen) / WIDTH**0.5
        keys = torch.arange(seen.shape[1], device=q.device)
        beyond = keys >= self.lens.clamp(min=1)[:, None]  # padding has no token
        weights = scores.masked_fill(beyond[:, None], float("-inf")).softmax(-1)
        return torch.einsum("thk,tkw->thw", weights, seen)


class LatentPlanner(KVPlanner):
    def __init__(self, pages):
        self.pages = pages

    def plan(self, rows):
        return LatentPlan(self.pages, *upload(self.pages.device, rows.token_slots, rows.positions + 1))

    def plan_decodes(self, slots, kv_lens):
        return LatentPlan(self.pages, slots, kv_lens)


class Latent(KVKind):
    name = "latent"
    can_record = True

    def planner(self, pages, page_size):
        return LatentPlanner(pages)


class LatentAttention(Part):
    def __init__(self, make, num_heads):
        hidden, self.q_size = make.config.hidden_size, num_heads * WIDTH
        self.project = make.linear(hidden, {"q_proj": self.q_size, "latent_proj": WIDTH})
        self.output = make.linear(self.q_size, {"o_proj": hidden})

    def weights(self):
        yield from self.project.weights()
        yield from self.output.weights()

    def forward(self, x, inp, kv):
        q, latent = self.project.forward(x, inp).split((self.q_size, WIDTH), dim=1)
        latents = kv.planes["latent"]
        latents.flatten(0, 1).index_copy_(0, inp.groups[kv.group].kv_slots, latent)
        seen = inp.plan(kv).attend(inp.keep(q).unflatten(1, (-1, WIDTH)), latents)
        return self.output.forward(seen.flatten(1), inp)


class ToyLatent(CausalLM):
    latent = 1  # the layer of this kind; the other is an ordinary one

    def layer(self, index, make):
        at, heads = make.at(make.names.attention), make.heads
        own = index == self.latent
        attention = LatentAttention(at, heads.q) if own else Attention(at, self.rotary, heads)
        mlp = GatedMLP(make.at(make.names.mlp))
        return PreNormLayer(make.names, attention, mlp, make.rms_norm(), make.rms_norm())

    def kv_groups(self):
        [usual] = super().kv_groups()
        planes = (Plane("latent", (WIDTH,), self.dtype),)
        own = KVGroup((self.latent,), planes, usual.num_q_heads, Latent())
        return own, replace(usual, layers=(1 - self.latent,))


class ToyLatentFirst(ToyLatent):
    latent = 0


def plain_logits(weights, latent, ids):
    """Logits ``[V]`` after the last of ``ids``; layer ``latent`` is of that kind."""
    heads, kv_heads = TINY["num_attention_heads"], TINY["num_key_value_heads"]

    def linear(x, name):
        return x @ weights[f"{name}.weight"].T

    def norm(x, name):
        return F.rms_norm(x, x.shape[-1:], weights[f"{name}.weight"], 1e-6)

    def keys_and_values(x, at, index):
        if index == latent:
            latents = linear(x, f"{at}.latent_proj")[:, None].expand(-1, heads, -1)
            return linear(x, f"{at}.q_proj").view(len(ids), heads, -1), latents, latents
        q = rotated(linear(x, f"{at}.q_proj").view(len(ids), heads, -1))
        k = rotated(linear(x, f"{at}.k_proj").view(len(ids), kv_heads, -1))
        v = linear(x, f"{at}.v_proj").view(len(ids), kv_heads, -1)
        return q, *(tensor.repeat_interleave(heads // kv_heads, 1) for tensor in (k, v))

    x = weights["model.embed_tokens.weight"][ids]
    for index in range(TINY["num_hidden_layers"]):
        at = f"model.layers.{index}"
        heard = keys_and_values(norm(x, f"{at}.input_layernorm"), f"{at}.self_attn", index)
        q, k, v = (tensor.transpose(0, 1) for tensor in heard)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(0, 1).flatten(1)
        x = x + linear(attended, f"{at}.self_attn.o_proj")
        normed = norm(x, f"{at}.post_attention_layernorm")
        gate = F.silu(linear(normed, f"{at}.mlp.gate_proj"))
        x = x + linear(gate * linear(normed, f"{at}.mlp.up_proj"), f"{at}.mlp.down_proj")
    return linear(norm(x, "model.norm"), "lm_head")[-1]


@pytest.fixture(scope="module", params=[ToyLatent, ToyLatentFirst], ids=["last", "first"])
def toy(request, tmp_path_factory):
    """The folder of a checkpoint, and a function of the tokens that the plain model generates."""
    family = request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_registered", {})
        rootlet.register_model(family.__name__, family)
        folder, weights = save_toy(tmp_path_factory.mktemp("toy"), family.__name__)
        yield folder, lambda prompt: greedy(lambda ids: plain_logits(weights, family.latent, ids), prompt)


def start(folder, **options):
    options = {"device": "cpu", "max_total_tokens": 512} | options
    return rootlet.Engine(folder, skip_tokenizer_init=True, **options)


def generate(engine, prompts=PROMPTS):
    """(tokens, cached tokens) of each prompt."""
    params = {"temperature": 0, "max_new_tokens": NUM_TOKENS}
    outputs = engine.generate(input_ids=prompts, sampling_params=params)
    return [list(output.token_ids) for output in outputs], [output.cached_tokens for output in outputs]


def check(toy, **options):
    """Three requests at once generate the plain model's tokens; the engine's statistics."""
    folder, expected = toy
    with start(folder, **options) as engine:
        assert generate(engine)[0] == [expected(prompt) for prompt in PROMPTS]
        return engine.stats()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"page_size": 1, "disable_overlap_schedule": False},
        {"page_size": 4, "chunked_prefill_size": 5},
        {"page_size": 1, "chunked_prefill_size": 4},
    ],
)
def test_tokens(toy, options):
    check(toy, **options)


@pytest.mark.parametrize("page_size", [1, 4])
def test_preempted_requests_compute_both_planes_again(toy, page_size):
    assert check(toy, max_total_tokens=44, page_size=page_size).num_preemptions > 0


@pytest.mark.parametrize("page_size", [1, 4, 16])
def test_a_cached_prefix_is_cached_in_both_groups(toy, page_size):
    """A page that is shared in part is copied, in planes of two sizes."""
    folder, expected = toy
    prompt = PROMPTS[0]
    other = [*prompt[:18], 3, 4]
    with start(folder, page_size=page_size) as engine:
        for ids, cached in ((prompt, 0), (other, 18), (prompt, len(prompt) - 1)):
            assert generate(engine, [ids]) == ([expected(ids)], [cached])


def test_recorded_steps(toy, monkeypatch):
    """Steps of decodes are recorded with the plans of both groups, unless a kind does not allow it."""
    pytest.importorskip("supported_triton")
    from replayed_graphs import use_gpu_steps

    graphs = use_gpu_steps(monkeypatch)
    check(toy, disable_overlap_schedule=False, cuda_graph_max_bs=4)
    [made] = graphs
    # the kind plans no recorded steps of several tokens a row
    assert [recorded for _, _, recorded in made.replays] == [False] + [True] * (NUM_TOKENS - 1)
    monkeypatch.setattr(Latent, "can_record", False)
    check(toy, disable_overlap_schedule=False)
    assert graphs == [made]


def test_what_the_kind_does_not_promise_is_refused(toy, monkeypatch):
    folder, _ = toy
    with pytest.raises(ConfigError, match=r"deterministic=True needs .* kind 'latent' does not promise"):
        start(folder, deterministic=True)
    monkeypatch.setattr(Latent, "can_record", False)
    with pytest.raises(ConfigError, match=r"cuda_graph_max_bs=4 .* kind 'latent' cannot be recorded"):
        start(folder, cuda_graph_max_bs=4)


def test_flashinfer_is_refused():
    config = ModelConfig.from_dict({"architectures": ["ToyLatent"], **TINY})
    model = ToyLatent(config, torch.float32, "cpu")
    with pytest.raises(ConfigError, match=r"one group .* kind 'latent' of layers 1 keeps 'latent' \[8\]"):
        make_backend("flashinfer", EngineConfig(model_path="none"), model, torch.device("cpu"))
