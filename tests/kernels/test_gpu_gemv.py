"""A matrix times a few vectors, with the norm before and what comes after."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from rootlet.kernels.gpu.gemv import (
    configuration,
    gemv,
    gemv_gated,
    gemv_gated_reference,
    gemv_reference,
    norm_gemv,
    norm_gemv_gated,
    norm_gemv_gated_reference,
    norm_gemv_reference,
)

# results are about 1: fp32 by the order of summation, bf16 by one rounding of the result
TOLERANCE = {torch.float32: {"atol": 2e-5, "rtol": 1e-4}, torch.bfloat16: {"atol": 4e-3, "rtol": 2**-7}}
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture
def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def inputs(device, m, n, k, dtype):
    """x ``[m, k]`` of size 1, weight ``[n, k]`` that keeps that size, bias ``[n]``."""
    x, weight, bias = (torch.randn(shape, device=device) for shape in ((m, k), (n, k), (n,)))
    return x.to(dtype), (weight * k**-0.5).to(dtype), bias.to(dtype)


@pytest.mark.parametrize(
    ("m", "n", "k"), [(1, 7, 64), (1, 3, 1000), (3, 5, 100), (2, 1, 7), (0, 4, 8)], ids=str
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", [{}, {"rows": 4, "block_k": 32, "num_warps": 2}], ids=str)
def test_gemv(m, n, k, dtype, options, device):
    x, weight, bias = inputs(device, m, n, k, dtype)
    out = torch.full((m, n), float("nan"), device=device, dtype=dtype)
    assert gemv(x, weight, out=out, **options) is out
    torch.testing.assert_close(out, gemv_reference(x, weight), **TOLERANCE[dtype])
    wide = gemv(x, weight, bias, torch.float32, **options)
    assert wide.dtype == torch.float32
    torch.testing.assert_close(wide, gemv_reference(x, weight, bias, torch.float32), atol=2e-5, rtol=1e-4)
    residual = torch.randn(m, n, device=device).to(dtype)
    expected = gemv_reference(x, weight, bias, residual=residual.clone())
    assert gemv(x, weight, bias, residual=residual, **options) is residual
    torch.testing.assert_close(residual, expected, **TOLERANCE[dtype])


@pytest.mark.parametrize(("m", "n", "k"), [(1, 7, 64), (3, 3, 100)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh"])
def test_gated(m, n, k, dtype, activation, device):
    x, weight, bias = inputs(device, m, 2 * n, k, dtype)
    for given, options in ((None, {}), (bias, {"rows": 8, "block_k": 16})):
        out = gemv_gated(x, weight, activation, given, **options)
        expected = gemv_gated_reference(x, weight, activation, given)
        torch.testing.assert_close(out, expected, **TOLERANCE[dtype])


@pytest.mark.parametrize(("m", "n", "k"), [(1, 5, 200), (3, 2, 100)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("with_branch", [False, True])
@pytest.mark.parametrize("options", [{}, {"rows": 4, "block_k": 32}], ids=str)
def test_norm_before(m, n, k, dtype, with_branch, options, device):
    _, weight, bias = inputs(device, m, 2 * n, k, dtype)
    # eighths: their sums are exact in bf16, which the interpreter does not round as a GPU does
    residual, branch = (torch.randint(-32, 33, (2, m, k), device=device) / 8).to(dtype)
    branch = branch if with_branch else None
    norm_weight = torch.randn(k, device=device).to(dtype)
    before = residual.clone()
    expected, total = norm_gemv_reference(branch, residual, norm_weight, 1e-5, weight, bias)
    actual, stream = norm_gemv(branch, residual, norm_weight, 1e-5, weight, bias, **options)
    torch.testing.assert_close(actual, expected, **TOLERANCE[dtype])
    buffer = torch.full_like(residual, float("nan"))
    args = (branch, residual, norm_weight, 1e-5, weight, "silu", bias)
    gated, gated_stream = norm_gemv_gated(*args, residual_out=buffer, **options)
    torch.testing.assert_close(gated, norm_gemv_gated_reference(*args)[0], **TOLERANCE[dtype])
    assert torch.equal(residual, before)
    for written in (stream, gated_stream):
        assert torch.equal(written, total)
    assert gated_stream is (buffer if with_branch else residual)


def test_eight_rows(device):
    x, weight, bias = inputs(device, 8, 5, 130, torch.float32)
    torch.testing.assert_close(gemv(x, weight, bias), gemv_reference(x, weight, bias))


def test_strided_rows(device):
    x, weight, _ = inputs(device, 3, 10, 64, torch.float32)
    wide = torch.cat((x, torch.full_like(x, float("nan"))), dim=1)
    torch.testing.assert_close(gemv(wide[:, :64], weight), gemv_reference(x, weight))


def test_a_row_is_the_same_alone_and_among_padding(device):
    """Three rows run as four: the one repeated for padding is not stored."""
    x, weight, _ = inputs(device, 3, 5, 40, torch.float32)
    memory = torch.full((4, 5), float("nan"), device=device)
    gemv(x, weight, out=memory[:3], block_k=16)
    assert memory[3].isnan().all()
    torch.testing.assert_close(memory[:1], gemv(x[:1], weight, block_k=16))


@pytest.mark.parametrize("k", [8, 576, 896, 1536, 4096, 4864, 8192, 14336])
@pytest.mark.parametrize("n", [1, 896, 4096, 28672, 151936])
@pytest.mark.parametrize("m", [1, 2, 8])
def test_configurations_fit_the_registers(n, k, m):
    for gated in (False, True):
        rows, block_k, num_warps = configuration(n, k, m, gated)
        assert all(value & (value - 1) == 0 for value in (rows, block_k, num_warps))
        assert m * rows * block_k * (1 + gated) / (32 * num_warps) <= 64
        assert k <= block_k or -k % block_k <= max(k // 4, 255)


def test_refusals(device):
    x, weight, bias = inputs(device, 2, 6, 8, torch.float32)
    with pytest.raises(ValueError, match="at most 8"):
        gemv(torch.zeros(9, 8, device=device), weight)
    with pytest.raises(ValueError, match="not \\[M, K\\]"):
        gemv(x[:, :7], weight)
    with pytest.raises(ValueError, match="bias"):
        gemv(x, weight, bias[:5])
    with pytest.raises(ValueError, match="dtype"):
        gemv(x.bfloat16(), weight)
    with pytest.raises(ValueError, match="contiguous"):
        gemv(x, torch.zeros(8, 6, device=device).T)
    with pytest.raises(ValueError, match="residual"):
        gemv(x, weight, residual=torch.zeros(2, 7, device=device))
    with pytest.raises(ValueError, match="activation"):
        gemv_gated(x, weight, "relu")
    with pytest.raises(ValueError, match="gate"):
        gemv_gated(x, weight[:5], "silu")
    with pytest.raises(ValueError, match="residual_out"):
        norm_gemv(x, x.clone(), x[0].clone(), 1e-5, weight, residual_out=x)
