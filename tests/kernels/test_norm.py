"""RMS norm, alone and after a residual add."""

from __future__ import annotations

import pytest
import torch

from rootlet.kernels.norm import add_rms_norm, add_rms_norm_reference, rms_norm, rms_norm_reference

TOLERANCE = {
    torch.float32: {"atol": 1e-5, "rtol": 1e-5},
    torch.bfloat16: {"atol": 1e-6, "rtol": 2**-7},  # one unit of the last place
}


@pytest.fixture(params=[(1, 576), (7, 33), (5, 8), (3, 1), (300, 200), (0, 64)], ids=str)
def shape(request):
    return request.param


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def dtype(request):
    return request.param


@pytest.mark.usefixtures("implementation")
def test_rms_norm(shape, dtype):
    x, weight = torch.randn(shape).to(dtype), torch.randn(shape[1]).to(dtype)
    actual = rms_norm(x, weight, 1e-5)
    torch.testing.assert_close(actual, rms_norm_reference(x, weight, 1e-5), **TOLERANCE[dtype])
    expected = torch.nn.functional.rms_norm(x.double(), shape[1:], weight.double(), 1e-5).to(dtype)
    torch.testing.assert_close(actual, expected, **TOLERANCE[dtype])


@pytest.mark.usefixtures("implementation")
def test_add_rms_norm(shape, dtype):
    x, residual = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    weight = torch.randn(shape[1]).to(dtype)
    total = residual + x
    expected = add_rms_norm_reference(x, residual.clone(), weight, 1e-5)
    torch.testing.assert_close(add_rms_norm(x, residual, weight, 1e-5), expected, **TOLERANCE[dtype])
    assert torch.equal(residual, total)


@pytest.mark.usefixtures("implementation")
def test_an_offset_of_the_weight_is_added_in_fp32(shape, dtype):
    """1 + 2^-10 is 1 in bf16: the weight alone must be stored."""
    x, residual = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    weight = (torch.randn(shape[1]) / 2**10).to(dtype)
    exact = torch.nn.functional.rms_norm(x.double(), shape[1:], 1 + weight.double(), 1e-5)
    torch.testing.assert_close(rms_norm(x, weight, 1e-5, 1.0), exact.to(dtype), **TOLERANCE[dtype])
    torch.testing.assert_close(rms_norm_reference(x, weight, 1e-5, 1.0), exact.to(dtype), **TOLERANCE[dtype])
    wide = rms_norm(x.float(), weight.float(), 1e-5, 1.0).double()
    torch.testing.assert_close(wide, exact, **TOLERANCE[torch.float32])
    expected = add_rms_norm_reference(x, residual.clone(), weight, 1e-5, 1.0)
    torch.testing.assert_close(add_rms_norm(x, residual, weight, 1e-5, 1.0), expected, **TOLERANCE[dtype])


@pytest.mark.usefixtures("implementation")
def test_strided_tensors(dtype):
    wide = torch.randn(6, 80).to(dtype)
    x, residual = wide[:, ::2], torch.randn(40, 6).to(dtype).T
    weight = torch.randn(80).to(dtype)[::2]
    torch.testing.assert_close(
        rms_norm(x, weight, 1e-5),
        rms_norm_reference(x.contiguous(), weight.contiguous(), 1e-5),
        **TOLERANCE[dtype],
    )
    total = residual + x
    add_rms_norm(x, residual, weight, 1e-5)
    assert torch.equal(residual, total)


@pytest.mark.usefixtures("implementation")
def test_zeros_and_nan():
    weight = torch.ones(40)
    assert torch.equal(rms_norm(torch.zeros(2, 40), weight, 1e-5), torch.zeros(2, 40))
    x = torch.ones(2, 40)
    x[1, 3] = float("nan")
    out = rms_norm(x, weight, 1e-5)
    assert not out[0].isnan().any()
    assert out[1].isnan().all()


@pytest.mark.usefixtures("implementation")
def test_mixed_dtypes_take_the_reference():
    x, weight = torch.randn(3, 40).bfloat16(), torch.randn(40)
    assert torch.equal(rms_norm(x, weight, 1e-5), rms_norm_reference(x, weight, 1e-5))


@pytest.mark.usefixtures("implementation")
def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match="weight"):
        rms_norm(torch.zeros(2, 8), torch.zeros(9), 1e-5)
    with pytest.raises(ValueError, match="residual"):
        add_rms_norm(torch.zeros(2, 8), torch.zeros(3, 8), torch.zeros(8), 1e-5)
