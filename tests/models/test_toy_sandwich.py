"""A toy family that is not in the package: norms of 1 + w around each branch, scores and logits bounded.

One class and one registration; every token is that of a plain torch model written out below, on the CPU's
kernels in an engine and on the GPU's, which Triton interprets here.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from rootlet.models.layers.attention import Attention
from rootlet.models.layers.decoder import CausalLM
from rootlet.models.layers.layers import PostNormLayer
from rootlet.models.layers.mlp import GatedMLP

from .gpu_driver import GpuDriver, gpu_kernels  # noqa: F401
from .hf import one_thread  # noqa: F401
from .toys import TINY, check_by_gpu_kernels, check_on_the_cpu, registered_toy, rotated

SOFT_CAP, LOGIT_CAP, WINDOW = 4.0, 6.0, 7


class ToySandwich(CausalLM):
    """Four norms of 1 + w in a layer, soft caps, a window in every other layer, tied embeddings."""

    tie_word_embeddings = True

    def layer(self, index, make):
        window = WINDOW if index % 2 else None
        return PostNormLayer(
            make.names,
            Attention(make.at("self_attn"), self.rotary, make.heads, window=window, soft_cap=SOFT_CAP),
            GatedMLP(make.at("mlp"), activation="gelu_pytorch_tanh"),
            make.rms_norm(offset=1.0),
            make.rms_norm(offset=1.0),
            input_norm=make.rms_norm(offset=1.0),
            pre_mlp_norm=make.rms_norm(offset=1.0),
        )

    def final_norm(self, make):
        return make.rms_norm(offset=1.0)

    def output_head(self, make):
        return make.head({make.names.head: self.config.vocab_size}, soft_cap=LOGIT_CAP)


def plain_logits(weights, ids):
    """Logits ``[V]`` after the last of ``ids``."""
    heads, kv_heads = TINY["num_attention_heads"], TINY["num_key_value_heads"]
    position = torch.arange(len(ids))
    distance = position[:, None] - position

    def linear(x, name):
        return x @ weights[f"{name}.weight"].T

    def norm(x, name):
        return F.rms_norm(x, x.shape[-1:], 1 + weights[f"{name}.weight"], 1e-6)

    def attention(x, at, window):
        q = rotated(linear(x, f"{at}.q_proj").view(len(ids), heads, -1))
        k = rotated(linear(x, f"{at}.k_proj").view(len(ids), kv_heads, -1))
        v = linear(x, f"{at}.v_proj").view(len(ids), kv_heads, -1)
        k, v = (tensor.repeat_interleave(heads // kv_heads, 1) for tensor in (k, v))
        scores = SOFT_CAP * torch.tanh(torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5 / SOFT_CAP)
        hidden = (distance < 0) | (distance >= window)
        weights_of_keys = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        return linear(torch.einsum("hqk,khd->qhd", weights_of_keys, v).flatten(1), f"{at}.o_proj")

    def mlp(x, at):
        gate = F.gelu(linear(x, f"{at}.gate_proj"), approximate="tanh")
        return linear(gate * linear(x, f"{at}.up_proj"), f"{at}.down_proj")

    x = weights["model.embed_tokens.weight"][ids]
    for index in range(TINY["num_hidden_layers"]):
        at, window = f"model.layers.{index}", WINDOW if index % 2 else len(ids)
        branch = attention(norm(x, f"{at}.input_layernorm"), f"{at}.self_attn", window)
        x = x + norm(branch, f"{at}.post_attention_layernorm")
        branch = mlp(norm(x, f"{at}.pre_feedforward_layernorm"), f"{at}.mlp")
        x = x + norm(branch, f"{at}.post_feedforward_layernorm")
    logits = linear(norm(x, "model.norm"), "model.embed_tokens")[-1]
    return LOGIT_CAP * torch.tanh(logits / LOGIT_CAP)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """The folder of a checkpoint, and the tokens that the plain model generates for each prompt."""
    with registered_toy(tmp_path_factory.mktemp("toy"), ToySandwich, plain_logits, norm=0.0) as made:
        yield made


@pytest.mark.parametrize(
    "options", [{}, {"chunked_prefill_size": 5, "page_size": 4}, {"deterministic": True}]
)
def test_tokens_on_the_cpu(toy, options):
    check_on_the_cpu(*toy, **options)


def test_tokens_by_the_kernels_of_a_gpu(toy, gpu_kernels):  # noqa: F811
    check_by_gpu_kernels(*toy)
