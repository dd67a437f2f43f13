"""Matrix products with what stands before and after them: the kernel for few rows and the one for more."""

from __future__ import annotations

import itertools

import pytest
import torch

pytest.importorskip("supported_triton")

from rootlet.kernels.gpu.gemm import GemmConfig, gemm, gemm_config
from rootlet.kernels.gpu.gemv import GemvConfig, gemv, gemv_config
from rootlet.kernels.norm import NormWeight
from rootlet.kernels.products import Product

# results are about 1: fp32 by the order of summation, bf16 by one rounding of the result
TOLERANCE = {torch.float32: {"atol": 2e-5, "rtol": 1e-4}, torch.bfloat16: {"atol": 4e-3, "rtol": 2**-7}}
DTYPES = [torch.float32, torch.bfloat16]
KERNELS = [
    pytest.param(gemv, {}, id="gemv"),
    pytest.param(gemv, {"config": GemvConfig(4, 32, 2)}, id="gemv-4x32"),
    pytest.param(gemm, {}, id="gemm"),
    pytest.param(gemm, {"config": GemmConfig(16, 32, 32, 4, 2)}, id="gemm-16x32"),
]


@pytest.fixture
def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def inputs(device, m, n, k, dtype):
    """x ``[m, k]`` of size 1, weight ``[n, k]`` that keeps that size, bias ``[n]``."""
    x, weight, bias = (torch.randn(shape, device=device) for shape in ((m, k), (n, k), (n,)))
    return x.to(dtype), (weight * k**-0.5).to(dtype), bias.to(dtype)


@pytest.mark.parametrize(("kernel", "options"), KERNELS)
@pytest.mark.parametrize(
    ("m", "n", "k"), [(1, 7, 64), (1, 3, 1000), (3, 5, 100), (2, 1, 7), (0, 4, 8)], ids=str
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_alone_and_with_bias_and_residual(kernel, options, m, n, k, dtype, device):
    x, weight, bias = inputs(device, m, n, k, dtype)
    plain = Product(x)
    torch.testing.assert_close(kernel(plain, weight, **options), plain.reference(weight), **TOLERANCE[dtype])
    wide = Product(x, bias, out_dtype=torch.float32)
    result = kernel(wide, weight, **options)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, wide.reference(weight), atol=2e-5, rtol=1e-4)
    residual = torch.randn(m, n, device=device).to(dtype)
    expected = Product(x, bias, residual=residual.clone()).reference(weight)
    assert kernel(Product(x, bias, residual=residual), weight, **options) is residual
    torch.testing.assert_close(residual, expected, **TOLERANCE[dtype])


@pytest.mark.parametrize(("kernel", "options"), KERNELS)
@pytest.mark.parametrize(("m", "n", "k"), [(1, 7, 64), (3, 3, 100)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh"])
def test_gated(kernel, options, m, n, k, dtype, activation, device):
    x, weight, bias = inputs(device, m, 2 * n, k, dtype)
    for given in (None, bias):
        product = Product(x, given, activation=activation)
        expected = product.reference(weight)
        torch.testing.assert_close(kernel(product, weight, **options), expected, **TOLERANCE[dtype])


@pytest.mark.parametrize("options", [{}, {"config": GemvConfig(4, 32, 2)}], ids=str)
@pytest.mark.parametrize(("m", "n", "k"), [(1, 5, 200), (3, 2, 100)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("activation", "offset"), [(None, 0.0), ("silu", 0.0), ("silu", 1.0)])
def test_norm_before(options, m, n, k, dtype, activation, offset, device):
    x, weight, bias = inputs(device, m, 2 * n, k, dtype)
    norm = NormWeight(torch.randn(k, device=device).to(dtype), 1e-5, offset)
    before = x.clone()
    product = Product(x, bias, norm=norm, activation=activation)
    expected = product.reference(weight)
    torch.testing.assert_close(gemv(product, weight, **options), expected, **TOLERANCE[dtype])
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    "config", [GemmConfig(16, 16, 32, 4, 2), GemmConfig(64, 32, 64, 4, 3, True)], ids=str
)
def test_gemm_of_many_tiles(config, device):
    x, weight, bias = inputs(device, 70, 90, 72, torch.bfloat16)
    residual = torch.zeros(70, 90, device=device).bfloat16()
    for product in (Product(x, bias, activation="silu"), Product(x, residual=residual)):
        expected = product._replace(residual=None).reference(weight)
        actual = gemm(product, weight, config=config)
        torch.testing.assert_close(actual, expected, **TOLERANCE[torch.bfloat16])


def test_measured_configurations_are_launchable():
    for m, n, gated in itertools.product((5, 16, 64, 200, 512, 600), (896, 4864, 10**5), (False, True)):
        config = gemm_config(m, n, 896, gated=gated)
        if config is not None:
            tiles = (config.block_m + config.block_n * (1 + gated)) * config.block_k * 2 * config.num_stages
            assert tiles <= 227 * 1024  # shared memory of an H100's program
    assert gemm_config(600, 896, 896, gated=False) is None
    assert gemm_config(64, 4096, 14336, gated=False) is None


@pytest.mark.parametrize("rows", [8, 3], ids=str)
def test_more_rows(rows, device):
    x, weight, bias = inputs(device, rows, 5, 130, torch.float32)
    for kernel in (gemv, gemm):
        product = Product(x, bias)
        torch.testing.assert_close(kernel(product, weight), product.reference(weight))


def test_strided_rows(device):
    x, weight, _ = inputs(device, 3, 10, 64, torch.float32)
    wide = torch.cat((x, torch.full_like(x, float("nan"))), dim=1)
    for kernel in (gemv, gemm):
        torch.testing.assert_close(kernel(Product(wide[:, :64]), weight), Product(x).reference(weight))


@pytest.mark.parametrize("kernel", [gemv, gemm])
def test_a_row_is_the_same_alone_and_among_padding(kernel, device):
    """Three rows run as four or more: those repeated for padding are not stored."""
    x, weight, _ = inputs(device, 3, 5, 40, torch.float32)
    memory = torch.zeros((4, 5), device=device)
    memory[3] = float("nan")
    kernel(Product(x, residual=memory[:3]), weight)
    assert memory[3].isnan().all()
    torch.testing.assert_close(memory[:1], kernel(Product(x[:1]), weight))


@pytest.mark.parametrize("k", [8, 576, 896, 1536, 4096, 4864, 8192, 14336])
@pytest.mark.parametrize("n", [1, 896, 4096, 28672, 151936])
@pytest.mark.parametrize("m", [1, 2, 8])
def test_gemv_configurations_fit_the_registers(n, k, m):
    for gated in (False, True):
        rows, block_k, num_warps = gemv_config(n, k, m, gated)
        assert all(value & (value - 1) == 0 for value in (rows, block_k, num_warps))
        assert m * rows * block_k * (1 + gated) / (32 * num_warps) <= 64
        assert k <= block_k or -k % block_k <= max(k // 4, 255)


def test_refusals(device):
    x, weight, bias = inputs(device, 2, 6, 8, torch.float32)
    with pytest.raises(ValueError, match="at most 8"):
        gemv(Product(torch.zeros(9, 8, device=device)), weight)
    with pytest.raises(ValueError, match="normalise"):
        gemm(Product(x, norm=NormWeight(x[0].clone(), 1e-5)), weight)
    for bad, matrix, match in (
        (Product(x[:, :7]), weight, "not \\[M, K\\]"),
        (Product(x, bias[:5]), weight, "bias"),
        (Product(x.bfloat16()), weight, "dtype"),
        (Product(x), torch.zeros(8, 6, device=device).T, "contiguous"),
        (Product(x, residual=torch.zeros(2, 7, device=device)), weight, "residual"),
        (
            Product(x, residual=torch.zeros(2, 6, device=device), out_dtype=torch.bfloat16),
            weight,
            "out_dtype",
        ),
        (Product(x, norm=NormWeight(bias, 1e-5)), weight, "norm"),
        (Product(x, activation="relu"), weight, "activation"),
        (Product(x, activation="silu"), weight[:5], "gate"),
        (Product(x, delta=torch.zeros(2, 6, device=device)), weight, "delta"),
    ):
        for kernel in (gemv, gemm):
            with pytest.raises(ValueError, match=match):
                kernel(bad, matrix)
