"""Index of the largest logit, whole and split over programs."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("supported_triton")

from rootlet.kernels.gpu.argmax import argmax, argmax_reference

NAN, INF = float("nan"), float("inf")


@pytest.fixture
def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("shape", [(1, 1), (3, 1000), (2, 6001), (9, 129), (0, 5)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", [{}, {"splits": 1, "block": 64}, {"splits": 8, "block": 128}], ids=str)
def test_against_torch(shape, dtype, options, device):
    """bf16 rows hold many equal values: the lowest index counts."""
    logits = torch.randn(shape, device=device).to(dtype)
    out = torch.full(shape[:1], -1, device=device)
    assert argmax(logits, out=out, **options) is out
    assert torch.equal(out, argmax_reference(logits))
    if len(logits):
        assert torch.equal(out, logits.float().argmax(dim=-1)) or dtype is torch.bfloat16


@pytest.mark.parametrize("options", [{"splits": 1}, {"splits": 4}], ids=str)
def test_ties_nan_and_infinities(options, device):
    rows = torch.full((7, 200), -1.0, device=device)
    rows[0, [7, 8, 150]] = 3.0
    rows[1, 0], rows[1, 190] = NAN, 2.0
    rows[2] = NAN
    rows[3] = -INF
    rows[4] = -INF
    rows[4, :100] = NAN
    rows[5, 33] = INF
    rows[5, 5] = NAN
    rows[6] = -INF
    rows[6, 199] = -1e30
    expected = [7, 190, 0, 0, 100, 33, 199]
    assert argmax(rows, block=16, **options).tolist() == expected
    assert argmax_reference(rows).tolist() == expected


def test_strided_rows(device):
    wide = torch.randn(4, 90, device=device)
    assert torch.equal(argmax(wide[:, 10:75]), wide[:, 10:75].argmax(dim=-1))
    assert torch.equal(argmax(wide.T), wide.T.argmax(dim=-1))


def test_refusals(device):
    with pytest.raises(ValueError, match="logits"):
        argmax(torch.zeros(3, 0, device=device))
    with pytest.raises(ValueError, match="logits"):
        argmax(torch.zeros(3, 4, device=device, dtype=torch.int32))
    with pytest.raises(ValueError, match="out"):
        argmax(torch.zeros(3, 4, device=device), out=torch.zeros(2, dtype=torch.int64, device=device))
