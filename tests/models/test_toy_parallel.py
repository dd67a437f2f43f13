"""A toy family that is not in the package: attention and feed-forward side by side, norms with mean and bias.

One class and one registration; every token is that of a plain torch model written out below, on the CPU's
kernels in an engine and on the GPU's, which Triton interprets here.
"""

from __future__ import annotations

import pytest
import torch.nn.functional as F

from rootlet.models.layers.attention import Attention
from rootlet.models.layers.decoder import CausalLM
from rootlet.models.layers.layers import ParallelLayer
from rootlet.models.layers.mlp import GatedMLP
from rootlet.models.layers.names import Names

from .gpu_driver import GpuDriver, gpu_kernels  # noqa: F401
from .hf import one_thread  # noqa: F401
from .toys import TINY, check_by_gpu_kernels, check_on_the_cpu, registered_toy, rotated


class ToyParallel(CausalLM):
    """Parallel residual, biased LayerNorm, biases on q, k and v, and names of its own."""

    names = Names(body="transformer", embedding="wte", layer="h.{}", input_norm="norm_1", attention="attn")

    def layer(self, index, make):
        return ParallelLayer(
            make.names,
            Attention(make.at(make.names.attention), self.rotary, make.heads, qkv_bias=True),
            GatedMLP(make.at(make.names.mlp), activation="gelu"),
            make.layer_norm(),
        )

    def final_norm(self, make):
        return make.layer_norm()


def plain_logits(weights, ids):
    """Logits ``[V]`` after the last of ``ids``."""
    heads, kv_heads = TINY["num_attention_heads"], TINY["num_key_value_heads"]

    def linear(x, name):
        return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-5)

    x = weights["transformer.wte.weight"][ids]
    for index in range(TINY["num_hidden_layers"]):
        at = f"transformer.h.{index}"
        normed = norm(x, f"{at}.norm_1")
        q = rotated(linear(normed, f"{at}.attn.q_proj").view(len(ids), heads, -1))
        k = rotated(linear(normed, f"{at}.attn.k_proj").view(len(ids), kv_heads, -1))
        v = linear(normed, f"{at}.attn.v_proj").view(len(ids), kv_heads, -1)
        q, k, v = (tensor.transpose(0, 1) for tensor in (q, k, v))
        k, v = (tensor.repeat_interleave(heads // kv_heads, 0) for tensor in (k, v))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(0, 1).flatten(1)
        hidden = F.gelu(linear(normed, f"{at}.mlp.gate_proj")) * linear(normed, f"{at}.mlp.up_proj")
        x = x + linear(attended, f"{at}.attn.o_proj") + linear(hidden, f"{at}.mlp.down_proj")
    return linear(norm(x, "transformer.norm"), "lm_head")[-1]


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """The folder of a checkpoint, and the tokens that the plain model generates for each prompt."""
    with registered_toy(tmp_path_factory.mktemp("toy"), ToyParallel, plain_logits) as made:
        yield made


@pytest.mark.parametrize(
    "options", [{}, {"chunked_prefill_size": 5, "page_size": 4}, {"deterministic": True}]
)
def test_tokens_on_the_cpu(toy, options):
    check_on_the_cpu(*toy, **options)


def test_tokens_by_the_kernels_of_a_gpu(toy, gpu_kernels):  # noqa: F811
    check_by_gpu_kernels(*toy)
