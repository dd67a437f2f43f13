"""Kernels of the deterministic mode: right, and a row's result bitwise its own whatever stands beside it.

The second holds on a GPU only: the interpreter multiplies tiles with numpy, which promises no such thing.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("supported_triton")

from rootlet.kernels.attention import PagedAttentionPlan, paged_attention_reference
from rootlet.kernels.gpu.linear import run
from rootlet.kernels.gpu.prefill_attention import (
    invariant_config,
    prefill_attention,
    prefill_tiles,
    tile_tokens,
)
from rootlet.kernels.norm import NormWeight
from rootlet.kernels.products import Product
from rootlet.kernels.scoring import Scoring

ON_GPU = torch.cuda.is_available()
TOLERANCE = {torch.float32: {"atol": 5e-5, "rtol": 1e-4}, torch.bfloat16: {"atol": 1e-2, "rtol": 2**-6}}
DTYPES = [torch.float32, torch.bfloat16]


def assert_same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    if ON_GPU:
        assert torch.equal(actual, expected)
    else:
        torch.testing.assert_close(actual, expected, **TOLERANCE[actual.dtype])


@pytest.fixture
def device() -> str:
    return "cuda" if ON_GPU else "cpu"


# (k, n) of the layers of an 8B and a 0.5B model on a GPU, small and odd ones everywhere
SIZES = [(100, 24), (64, 33), (80, 64)] + (
    [(4096, 6144), (14336, 4096), (896, 4864), (576, 576)] if ON_GPU else []
)
ROWS = [1, 2, 5, 64, 65, 130] + ([700, 4096] if ON_GPU else [])


@pytest.mark.parametrize("around", ["plain", "bias", "norm", "residual", "silu", "fp32 out"])
@pytest.mark.parametrize(("k", "n"), SIZES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_products(around, k, n, dtype, device):
    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device).to(dtype)

    weight = random(2 * n if around == "silu" else n, k) * k**-0.5
    x, residual, bias = random(max(ROWS), k), random(max(ROWS), n), random(len(weight))
    norm = NormWeight(random(k), 1e-5)

    def product(rows: slice) -> Product:
        return Product(
            x[rows],
            bias if around == "bias" else None,
            norm=norm if around == "norm" else None,
            activation="silu" if around == "silu" else None,
            residual=residual[rows].clone() if around == "residual" else None,
            out_dtype=torch.float32 if around == "fp32 out" else None,
        )

    whole = run(product(slice(None)), weight, pdl=False, batch_invariant=True)
    torch.testing.assert_close(whole, product(slice(None)).reference(weight), **TOLERANCE[dtype])
    for count in ROWS:
        first = max(ROWS) // 3 if count <= max(ROWS) // 2 else 0
        rows = slice(first, first + count)
        assert_same(run(product(rows), weight, pdl=False, batch_invariant=True), whole[rows])


def attend(q, k, v, pages, parts, window, soft_cap):
    """Causal attention of one sequence, of which ``parts`` (first, last) are computed in one launch."""
    config = invariant_config(q.shape[2], q.dtype)
    counts = np.array([last - first for first, last in parts])
    kv_lens = np.array([last for _, last in parts])
    tokens = tile_tokens(config.block_m, q.shape[1], k.shape[2])

    def send(values) -> torch.Tensor:
        return torch.from_numpy(np.asarray(values, dtype=np.int32)).to(q.device)

    return prefill_attention(
        torch.cat([q[first:last] for first, last in parts]), k, v, pages,
        torch.zeros(len(parts), dtype=torch.int32, device=q.device),
        send([0, *np.cumsum(counts)]), send(kv_lens), send(prefill_tiles(counts, tokens, kv_lens)),
        Scoring(q.shape[2] ** -0.5, window, soft_cap), config=config,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("heads", "page_size", "dtype", "window", "soft_cap"),
    [
        ((8, 2, 64), 16, torch.bfloat16, None, None),
        ((8, 2, 64), 16, torch.bfloat16, 30, None),
        ((4, 1, 128), 64, torch.bfloat16, None, 5.0),
        ((3, 3, 80), 1, torch.bfloat16, None, None),
        ((4, 2, 32), 64, torch.float32, None, None),
    ],
    ids=str,
)
def test_attention(heads, page_size, dtype, window, soft_cap, device):
    num_q_heads, num_kv_heads, head_dim = heads
    length = 1500 if ON_GPU else 90
    num_pages = -(-length // page_size) + 1
    q = torch.randn(length, num_q_heads, head_dim, device=device).to(dtype)
    k, v = torch.randn(2, num_pages, page_size, num_kv_heads, head_dim, device=device).to(dtype)
    pages = torch.randperm(num_pages)[: num_pages - 1].int()[None].to(device)
    whole = attend(q, k, v, pages, [(0, length)], window, soft_cap)
    plan = PagedAttentionPlan(
        page_table=pages.cpu(),
        q_starts=torch.tensor([0, length], dtype=torch.int32),
        kv_lens=torch.tensor([length], dtype=torch.int32),
        page_size=page_size,
        max_q=length,
        max_kv=length,
    )
    scoring = Scoring(head_dim**-0.5, window, soft_cap)
    expected = paged_attention_reference(q.cpu(), k.cpu(), v.cpu(), plan, scoring)
    torch.testing.assert_close(whole.cpu().float(), expected.float(), **TOLERANCE[dtype])
    for parts in (
        [(0, 37), (37, 38), (38, length)],
        [(length - 1, length)],
        [(5, 6), (length - 40, length - 1), (0, 1), (20, 70)],
    ):
        computed = attend(q, k, v, pages, parts, window, soft_cap)
        assert_same(computed, torch.cat([whole[first:last] for first, last in parts]))
