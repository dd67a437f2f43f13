"""The same on the GPU's kernels, which Triton interprets where there is no GPU: tiny, and without an engine.

The engine's side is its model over a paged cache, and its sampler.
"""

from __future__ import annotations

import pytest
import torch

import rootlet

pytest.importorskip("supported_triton")

from rootlet.alignment import logprobs, products, sequences
from rootlet.kernels.gpu.attention import PrefillRows, TritonAttentionPlan
from rootlet.kernels.gpu.prefill_attention import invariant_config, prefill_tiles, tile_tokens
from rootlet.kernels.matrices.dense import DenseMatrix
from rootlet.models.layers import matrices
from rootlet.sampling.batch import SamplingBatch
from rootlet.sampling.params import SamplingParams
from rootlet.sampling.rows import SamplingRow
from rootlet.sampling.sampler import Sampler

from ..models.driver import Driver
from ..models.gpu_driver import gpu_kernels  # noqa: F401
from ..models.hf import build_hf, build_ours, one_thread, random_ids  # noqa: F401


class ExactDriver(Driver):
    """Every row by the one kernel of a deterministic engine."""

    def planned(self, plan):
        [group] = self.kv.spec.groups
        _, (num_kv_heads, head_dim), dtype = group.plane("k")
        config = invariant_config(head_dim, dtype)
        tokens = tile_tokens(config.block_m, group.num_q_heads, num_kv_heads)
        tiles = prefill_tiles(plan.q_starts.diff().numpy(), tokens, plan.kv_lens.numpy())
        slots = torch.arange(len(plan.kv_lens), dtype=torch.int32)
        rows = PrefillRows(slots, plan.kv_lens, plan.q_starts, torch.from_numpy(tiles), config=config)
        return TritonAttentionPlan(plan.page_table, None, rows)


@pytest.fixture
def on_a_gpu(gpu_kernels, monkeypatch):  # noqa: F811
    """Matrices are held as on a GPU, and the trainer's side takes its kernels."""

    def pack(weight, **options):
        return DenseMatrix(
            weight.detach().contiguous(), batch_invariant=options.get("batch_invariant", False)
        )

    for module in (sequences, logprobs):
        monkeypatch.setattr(module, "on_gpu", lambda tensor: True)
    for module in (products, matrices):
        monkeypatch.setattr(module, "pack_weight", pack)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["Llama", "Qwen2"])
def test_logits_are_those_of_the_model(family, dtype, on_a_gpu):
    """The same operations in the same order; that company changes nothing, only a GPU's products promise."""
    module = build_hf(family, num_hidden_layers=2).to(dtype)
    ids = {"a": random_ids(11, 1), "b": random_ids(5, 2)}
    ours = build_ours(module, dtype)
    for matrix in ours._matrices:
        matrix.matrix.batch_invariant = True
    expected = ExactDriver(ours, page_size=4).step(ids)
    padded = torch.tensor([ids["a"], ids["b"] + [0] * 6])  # behind, so that all rows stay where they are
    mask = torch.tensor([[1] * 11, [1] * 5 + [0] * 6])
    with rootlet.align(module), torch.no_grad():
        logits = module(padded, attention_mask=mask).logits
    assert torch.equal(logits[0], expected["a"])
    assert torch.equal(logits[1, :5], expected["b"])


@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
def test_scores_are_those_of_the_sampler(temperature, on_a_gpu):
    logits = 4 * torch.randn(9, 5000, generator=torch.Generator().manual_seed(0))
    params = SamplingParams(temperature=temperature)
    rows = [SamplingRow(params, seed, 0, 1, logprobs=True) for seed in range(len(logits))]
    batch = SamplingBatch.build(rows, logits.shape[1], torch.device("cpu"))
    positions, tokens = torch.arange(len(logits)), torch.zeros(1, 1, dtype=torch.int32)
    output = Sampler(logits.shape[1], "cpu", fused=True).sample(logits, batch, positions, tokens)
    assert torch.equal(logprobs.score(logits, output.token_ids, temperature or 1.0), output.logprobs)


def test_gradients_pass_through(on_a_gpu):
    module = build_hf("Qwen2", num_hidden_layers=2)
    ids = torch.tensor([random_ids(12, 1)])
    logits = module(ids, use_cache=False).logits[0, :-1]
    torch.log_softmax(logits, 1).gather(1, ids[0, 1:, None]).sum().backward()
    expected = {name: parameter.grad.clone() for name, parameter in module.named_parameters()}
    module.zero_grad()
    with rootlet.align(module):
        rootlet.token_logprobs(module, ids).sum().backward()
    for name, parameter in module.named_parameters():
        limit = 1e-4 * expected[name].abs().max().item()
        torch.testing.assert_close(parameter.grad, expected[name], atol=limit, rtol=1e-3, msg=name)
