"""RMS norm in Triton against the torch reference."""

from __future__ import annotations

import pytest
import torch

from rootlet.kernels.norm import add_rms_norm_reference, rms_norm_reference

pytest.importorskip("supported_triton")

from rootlet.kernels.gpu.norm import add_rms_norm, rms_norm

# bf16: a unit of the last place for the sum (the interpreter does not round up) and one for the result
TOLERANCE = {torch.float32: {"atol": 1e-5, "rtol": 1e-5}, torch.bfloat16: {"atol": 1e-6, "rtol": 2**-6}}


@pytest.fixture
def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("shape", [(1, 896), (5, 33), (3, 1), (2, 4096), (7, 8), (0, 64)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("num_warps", "offset"), [(None, 0.0), (2, 0.0), (None, 1.0)])
def test_both_forms(shape, dtype, num_warps, offset, device):
    x, residual = (torch.randn(shape, device=device).to(dtype) for _ in range(2))
    weight = torch.randn(shape[1], device=device).to(dtype)
    out = torch.full_like(x, float("nan"))
    assert rms_norm(x, weight, 1e-5, offset, out=out, num_warps=num_warps) is out
    torch.testing.assert_close(out, rms_norm_reference(x, weight, 1e-5, offset), **TOLERANCE[dtype])
    before = residual.clone()
    expected = add_rms_norm_reference(x, before, weight, 1e-5, offset)
    out = add_rms_norm(x, residual, weight, 1e-5, offset, num_warps=num_warps)
    torch.testing.assert_close(out, expected, **TOLERANCE[dtype])
    torch.testing.assert_close(residual, before, **TOLERANCE[dtype])


def test_strided_rows_and_output_over_the_input(device):
    wide = torch.randn(4, 100, device=device)
    x, stream, weight = wide[:, :40], torch.randn(4, 80, device=device), torch.randn(40, device=device)
    residual, untouched = stream[:, 40:], stream[:, :40].clone()
    before = residual.clone()
    expected = add_rms_norm_reference(x.clone(), before, weight, 1e-6)
    assert add_rms_norm(x, residual, weight, 1e-6, out=x) is x
    torch.testing.assert_close(wide[:, :40], expected)
    torch.testing.assert_close(residual, before)
    assert torch.equal(stream[:, :40], untouched)
    columns = torch.randn(40, 4, device=device).T
    torch.testing.assert_close(rms_norm(columns, weight, 1e-6), rms_norm_reference(columns, weight, 1e-6))


def test_the_sum_is_rounded_before_it_is_normalised(device):
    """1 + 2^-9 is 1 in bf16: the small branch leaves no trace in the output."""
    residual = torch.ones(1, 64, device=device, dtype=torch.bfloat16)
    residual[0, ::2] = 2.0
    branch = torch.full_like(residual, 2.0**-9)
    weight = torch.ones(64, device=device, dtype=torch.bfloat16)
    assert torch.equal(add_rms_norm(branch, residual.clone(), weight, 0.0), rms_norm(residual, weight, 0.0))


def test_nan_stays_in_its_row(device):
    x = torch.ones(2, 40, device=device)
    x[1, 3] = float("nan")
    out = rms_norm(x, torch.ones(40, device=device), 1e-5)
    assert not out[0].isnan().any()
    assert out[1].isnan().all()


def test_refusals(device):
    x, weight = torch.zeros(2, 8, device=device), torch.zeros(8, device=device)
    with pytest.raises(ValueError, match="weight"):
        rms_norm(x, weight[:7], 1e-5)
    with pytest.raises(ValueError, match="residual"):
        add_rms_norm(x, torch.zeros(3, 8, device=device), weight, 1e-5)
    with pytest.raises(ValueError, match="one floating dtype"):
        rms_norm(x, weight.bfloat16(), 1e-5)
    with pytest.raises(ValueError, match="contiguous"):
        add_rms_norm(x, torch.zeros(8, 2, device=device).T, weight, 1e-5)
    with pytest.raises(ValueError, match="at most 16384"):
        rms_norm(torch.zeros(1, 16385, device=device), torch.zeros(16385, device=device), 1e-5)
