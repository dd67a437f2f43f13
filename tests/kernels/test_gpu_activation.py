"""Gated activations in Triton against the torch references."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from rootlet.kernels.activation import gelu_and_mul_reference, silu_and_mul_reference

pytest.importorskip("supported_triton")

from rootlet.kernels.gpu.activation import gelu_and_mul, silu_and_mul

# a unit of the last place in bf16; fp32 as exact as exp and erf
TOLERANCE = {torch.float32: {"atol": 2e-6, "rtol": 1e-5}, torch.bfloat16: {"atol": 1e-5, "rtol": 2**-7}}


@pytest.fixture
def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("shape", [(1, 2 * 896), (5, 66), (3, 2), (2, 2 * 2500), (0, 8)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("block", [None, 64])
def test_against_references(shape, dtype, block, device):
    gate_up = (3 * torch.randn(shape, device=device)).to(dtype)
    out = torch.full((shape[0], shape[1] // 2), float("nan"), device=device, dtype=dtype)
    assert silu_and_mul(gate_up, out=out, block=block) is out
    torch.testing.assert_close(out, silu_and_mul_reference(gate_up), **TOLERANCE[dtype])
    for kind in ("none", "tanh"):
        out = gelu_and_mul(gate_up, kind, block=block)
        # in fp64: for negative x the formula subtracts nearly equal numbers
        gate, up = gate_up.double().chunk(2, dim=-1)
        expected = (F.gelu(gate, approximate=kind) * up).to(dtype)
        torch.testing.assert_close(out, expected, **TOLERANCE[dtype])


def test_strided_rows_and_large_values(device):
    wide = torch.randn(3, 100, device=device)
    torch.testing.assert_close(silu_and_mul(wide[:, 20:]), silu_and_mul_reference(wide[:, 20:]))
    extremes = torch.tensor([[-200.0, 200.0, -30.0, 1.0, 1.0, 1.0]], device=device)
    torch.testing.assert_close(silu_and_mul(extremes), silu_and_mul_reference(extremes))
    torch.testing.assert_close(gelu_and_mul(extremes, "tanh"), gelu_and_mul_reference(extremes, "tanh"))


def test_refusals(device):
    gate_up = torch.zeros(2, 8, device=device)
    with pytest.raises(ValueError, match="gate"):
        silu_and_mul(gate_up[:, :7])
    with pytest.raises(ValueError, match="gate"):
        silu_and_mul(gate_up[0])
    with pytest.raises(ValueError, match="approximate"):
        gelu_and_mul(gate_up, "erf")
    with pytest.raises(ValueError, match="out"):
        silu_and_mul(gate_up, out=torch.zeros(2, 5, device=device))
