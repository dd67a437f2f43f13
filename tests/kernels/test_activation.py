"""Gated activations."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from rootlet.kernels.activation import (
    gelu_and_mul,
    gelu_and_mul_reference,
    silu_and_mul,
    silu_and_mul_reference,
)

TOLERANCE = {
    torch.float32: {"atol": 1e-5, "rtol": 1e-5},
    torch.bfloat16: {"atol": 1e-6, "rtol": 2**-7},
}


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("shape", [(1, 3072), (7, 66), (5, 2), (3, 9000), (40, 500), (0, 64)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_against_reference(shape, dtype):
    x = (torch.randn(shape) * 4).to(dtype)
    torch.testing.assert_close(silu_and_mul(x), silu_and_mul_reference(x), **TOLERANCE[dtype])
    for approximate in ("none", "tanh"):
        actual = gelu_and_mul(x, approximate)
        # erf of a large negative number cancels: both forms keep the absolute error of fp32 there
        tolerance = {**TOLERANCE[dtype], "atol": 1e-5}
        torch.testing.assert_close(actual, gelu_and_mul_reference(x, approximate), **tolerance)
        gate, up = x.double().chunk(2, dim=-1)
        torch.testing.assert_close(
            actual, (F.gelu(gate, approximate=approximate) * up).to(dtype), **tolerance
        )


@pytest.mark.usefixtures("implementation")
def test_extremes():
    x = torch.tensor([[-1e4, -100.0, 0.0, 100.0, 1e4, float("nan"), 1, 1, 1, 1, 1, 1]])
    for out in (silu_and_mul(x)[0], gelu_and_mul(x, "tanh")[0], gelu_and_mul(x, "none")[0]):
        torch.testing.assert_close(out[:5], torch.tensor([0, 0, 0, 100, 1e4]))
        assert out[5].isnan()


@pytest.mark.usefixtures("implementation")
def test_strided_input():
    x = torch.randn(6, 200)[:, ::2]
    torch.testing.assert_close(silu_and_mul(x), silu_and_mul_reference(x.contiguous()))


@pytest.mark.usefixtures("implementation")
def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="approximate"):
        gelu_and_mul(torch.zeros(1, 4), "fast")
    with pytest.raises(ValueError, match=r"\[T, 2I\]"):
        silu_and_mul(torch.zeros(1, 5))
