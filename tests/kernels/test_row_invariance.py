"""A token's result alone is its result in any batch, at any place, on any number of threads: to the last bit.

Here the operations that work token by token; attention and linear layers have such tests beside their others.
Only the C kernels promise it.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from rootlet.kernels import native, norm
from rootlet.kernels.activation import ACTIVATIONS, gated_activation
from rootlet.kernels.embedding import embed
from rootlet.kernels.norm import add_rms_norm, rms_norm
from rootlet.kernels.rotary import rotary_and_store
from rootlet.kernels.threads import Team

pytestmark = [
    pytest.mark.usefixtures("c_build"),
    pytest.mark.skipif(native.load() is None, reason="the torch references promise nothing to the last bit"),
]

TOKENS = 300  # enough for every kernel to use its threads
Run = Callable[[torch.Tensor], tuple[torch.Tensor, ...]]


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def dtype(request) -> torch.dtype:
    return request.param


@pytest.fixture
def assert_invariant():
    """``assert_invariant(run)``: each result ``[n, ...]`` of run(n tokens) is the part of run(everything)."""

    def check(run: Run) -> None:
        everything = torch.arange(TOKENS)
        whole = run(everything)
        few = torch.randperm(TOKENS)
        batches = [
            few[:1],
            few[1:2],
            few[2:4],
            few[4:7],
            few[7:24],
            few[24:90],
            everything,
            everything.flip(0),
        ]
        for threads in (1, 2, 3):
            with Team(threads, kernels=norm._C).bound():
                for batch in batches:
                    for got, wanted in zip(run(batch), whole, strict=True):
                        assert torch.equal(got, wanted[batch])

    return check


@pytest.mark.parametrize("size", [576, 577, 40, 3])
def test_norms(assert_invariant, size, dtype):
    x, residual = torch.randn(2, TOKENS, size).to(dtype)
    weight = torch.randn(size).to(dtype)

    def added(tokens):
        stream = residual[tokens]
        return add_rms_norm(x[tokens], stream, weight, 1e-5), stream

    assert_invariant(lambda tokens: (rms_norm(x[tokens], weight, 1e-5),))
    assert_invariant(added)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("size", [1536, 33, 5000])
def test_activations(assert_invariant, size, name, dtype):
    gate_up = (torch.randn(TOKENS, 2 * size) * 4).to(dtype)
    assert_invariant(lambda tokens: (gated_activation(gate_up[tokens], name),))


@pytest.mark.parametrize("size", [960, 7])
def test_embedding(assert_invariant, size, dtype):
    table, ids = torch.randn(50, size).to(dtype), torch.randint(0, 50, (TOKENS,))
    assert_invariant(lambda tokens: (embed(ids[tokens], table),))


@pytest.mark.parametrize(("heads", "rotary_dim"), [((9, 3, 64), 64), ((4, 2, 20), 12)], ids=str)
@pytest.mark.parametrize("page_size", [1, 16])
def test_rotary(assert_invariant, page_size, heads, rotary_dim, dtype):
    num_q, num_kv, dim = heads
    qkv = torch.randn(TOKENS, (num_q + 2 * num_kv) * dim).to(dtype)
    cos_sin, positions = torch.randn(1000, rotary_dim), torch.randint(0, 1000, (TOKENS,))

    def run(tokens):
        caches = torch.zeros(2, TOKENS // page_size + 1, page_size, num_kv, dim, dtype=dtype)
        slots = torch.randperm(TOKENS)[: len(tokens)]
        q = rotary_and_store(qkv[tokens], cos_sin, positions[tokens], slots, *caches, num_q)
        k, v = caches.flatten(1, 2)[:, slots]
        return q, k, v

    assert_invariant(run)
