"""Linear layers against fp64, and the promises of the panel layout: exact storage, fixed order of sums.

Every test runs on the best C build, on the generic one and on torch alone, where "equal to the last
bit" becomes "close". Without the C extension all three are torch.
"""

from __future__ import annotations

import importlib
from contextlib import AbstractContextManager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rootlet.kernels import native
from rootlet.kernels.linear import linear, linear_add, linear_reference
from rootlet.kernels.matrices import dense, panels
from rootlet.kernels.matrices.dense import DenseMatrix
from rootlet.kernels.matrices.interface import Matrix
from rootlet.kernels.matrices.packing import pack_weight
from rootlet.kernels.matrices.panels import PanelMatrix
from rootlet.kernels.norm import NormWeight
from rootlet.kernels.products import Product, around
from rootlet.kernels.threads import Team

ROWS = [0, 1, 2, 3, 5, 16, 17, 64, 257]
DTYPES = [torch.bfloat16, torch.float32]
# (N, K): odd ones, one column, full panels, several blocks of K
SHAPES = [(1, 1), (7, 3), (16, 64), (33, 129), (50, 513), (96, 1100), (257, 70)]


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def have_c() -> bool:
    """Whether a C build stands behind the launcher; then weights can go into panels."""
    return panels.C is not None


def assert_close(out: torch.Tensor, x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Within the error of K + 1 fp32 roundings, and of the roundings to bf16, of the fp64 result.

    Each fp32 rounding is at most 2^-24 of the sum of magnitudes; bf16 rounds by at most 2^-9 of the
    result, and torch does so twice when a result in bf16 is converted or gets its bias.
    """
    x, w = x.double(), w.double()
    exact, magnitude = x @ w.T, x.abs() @ w.abs().T
    if bias is not None:
        exact, magnitude = exact + bias.double(), magnitude + bias.double().abs()
    tolerance = 2.0**-24 * (w.shape[1] + 2) * magnitude + 2.0**-126
    tolerance = tolerance + 2.0**-8 * (exact.abs() + tolerance)
    assert ((out.double() - exact).abs() <= tolerance).all()


def multiply(x: torch.Tensor, weight: Matrix, *args) -> torch.Tensor:
    """``linear`` where the C kernel runs; of torch the reference, which takes mixtures of dtypes too."""
    return (linear if have_c() else linear_reference)(x, weight, *args)


def assert_same(one: torch.Tensor, other: torch.Tensor) -> None:
    """Equal to the last bit where the C kernel runs, close where torch does."""
    if have_c():
        assert torch.equal(one, other)
    else:
        torch.testing.assert_close(one, other, rtol=2.0**-7, atol=1e-2)


@pytest.fixture(params=["default", "generic", "torch"], autouse=True)
def build(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    """Each implementation in turn; the generic build differs from the best one in the width of its panels."""
    if request.param == "torch":
        monkeypatch.setattr(panels, "C", None)
    elif request.param == "generic" and have_c():
        monkeypatch.setattr(panels, "C", importlib.import_module("rootlet.kernels._cpu_base"))


@pytest.fixture(autouse=True)
def threads():
    """``threads(n)``: what is computed inside is computed on so many; outside on one (busy machines)."""

    def bound(count: int) -> AbstractContextManager[None]:
        return Team(count, kernels=panels.C).bound()

    with bound(1):
        yield bound


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("n", "k"), SHAPES)
@pytest.mark.parametrize("in_panels", [False, True])
def test_bf16_agrees_with_fp64(in_panels: bool, n: int, k: int, with_bias: bool):
    w = random(n, k)
    weight = pack_weight(w.clone(), in_panels=in_panels and have_c())
    bias = random(n, seed=1) if with_bias else None
    for rows in ROWS:
        x = random(rows, k, seed=2)
        for out_dtype in (None, torch.bfloat16, torch.float32):
            out = linear(x, weight, bias, out_dtype)
            assert out.shape == (rows, n)
            assert out.dtype == (out_dtype or torch.bfloat16)
            assert_close(out, x, w, bias)
            assert_close(linear_reference(x, weight, bias, out_dtype), x, w, bias)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("n", "k"), SHAPES)
@pytest.mark.parametrize("in_panels", [False, True])
def test_fp32_agrees_with_fp64(in_panels: bool, n: int, k: int, with_bias: bool):
    w = random(n, k, dtype=torch.float32)
    weight = pack_weight(w, in_panels=in_panels and have_c())
    bias = random(n, seed=1, dtype=torch.float32) if with_bias else None
    for rows in ROWS:
        x = random(rows, k, seed=2, dtype=torch.float32)
        out = linear(x, weight, bias)
        assert out.dtype == torch.float32
        exact = x.double() @ w.double().T + (0 if bias is None else bias.double())
        torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(linear_reference(x, weight, bias), out, rtol=1e-5, atol=1e-4)
        assert linear(x, weight, bias, torch.bfloat16).dtype == torch.bfloat16


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 40),
    n=st.integers(1, 90),
    k=st.integers(1, 90),
    with_bias=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 1000),
)
def test_any_shape_agrees_with_fp64(
    rows: int, n: int, k: int, with_bias: bool, dtype: torch.dtype, seed: int
):
    w, x = random(n, k, seed=seed, dtype=dtype), random(rows, k, seed=seed + 1, dtype=dtype)
    bias = random(n, seed=seed + 2, dtype=dtype) if with_bias else None
    for in_panels in (False, True):
        assert_close(linear(x, pack_weight(w.clone(), in_panels=in_panels and have_c()), bias), x, w, bias)


def test_a_sum_over_nothing_is_the_bias():
    bias = random(5)
    for in_panels in (False, True):
        weight = pack_weight(torch.empty(5, 0, dtype=torch.bfloat16), in_panels=in_panels and have_c())
        out = linear(torch.empty(3, 0, dtype=torch.bfloat16), weight, bias)
        assert torch.equal(out, bias.expand(3, 5))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "k"), [(50, 70), (300, 1100), (17, 5000)])
def test_a_row_does_not_depend_on_the_others(dtype: torch.dtype, n: int, k: int):
    """Any number of rows, any position: one result. 600 rows of 5000 exceed the scratch space of one pass."""
    weight = pack_weight(random(n, k, dtype=dtype), in_panels=have_c())
    bias = random(n, seed=1, dtype=dtype)
    x = random(600, k, seed=2, dtype=dtype)
    full = linear(x, weight, bias, torch.float32)
    for first, last in [
        (0, 1),
        (599, 600),
        (3, 5),
        (7, 10),
        (1, 5),
        (9, 14),
        (11, 17),
        (20, 27),
        (30, 43),
        (50, 307),
    ]:
        assert_same(linear(x[first:last], weight, bias, torch.float32), full[first:last])
    assert_same(linear(x.flip(0), weight, bias).float(), full.flip(0).to(dtype).float())


@settings(max_examples=40, deadline=None)
@given(data=st.data(), w_dtype=st.sampled_from(DTYPES), x_dtype=st.sampled_from(DTYPES))
def test_a_row_alone_is_the_row_in_any_batch(data, w_dtype: torch.dtype, x_dtype: torch.dtype):
    """Any batch, position, row stride and number of threads: a row's result is its own, to the last bit."""
    n, k = data.draw(st.integers(1, 200), "n"), data.draw(st.integers(1, 1100), "k")
    weight = pack_weight(random(n, k, dtype=w_dtype), in_panels=have_c())
    bias = data.draw(st.sampled_from([None, random(n, seed=1), random(n, seed=1, dtype=torch.float32)]))
    row = random(1, k, seed=2, dtype=x_dtype)
    alone = multiply(row, weight, bias, torch.float32)
    for _ in range(4):
        rows = data.draw(st.integers(1, 120), "rows")
        place = data.draw(st.integers(0, rows - 1), "place")
        start, width = data.draw(st.integers(0, 20), "start"), k + data.draw(st.integers(20, 40), "gap")
        x = random(rows, width, seed=rows, dtype=x_dtype)[:, start : start + k]
        x[place] = row[0]
        with Team(data.draw(st.integers(1, 3), "threads"), kernels=panels.C).bound():
            assert_same(multiply(x, weight, bias, torch.float32)[place], alone[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [1, 2, 5, 16, 64, 257])
def test_a_result_does_not_depend_on_the_threads(threads, rows: int, dtype: torch.dtype):
    w, bias = random(500, 700, dtype=dtype), random(500, seed=1, dtype=dtype)
    x = random(rows, 700, seed=2, dtype=dtype)
    ids = torch.arange(499, -1, -1)
    results = []
    for count in (1, 2, 3):
        with threads(count):
            weight = pack_weight(w, in_panels=have_c())
            assert torch.equal(weight.rows(ids), w.flip(0))
            results.append(linear(x, weight, bias))
    assert_close(results[0], x, w, bias)
    assert_same(results[0], results[1])
    assert_same(results[0], results[2])


@pytest.mark.parametrize("w_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("x_dtype", DTYPES, ids=str)
def test_operands_of_any_two_dtypes_are_taken_unrounded(x_dtype: torch.dtype, w_dtype: torch.dtype):
    """Weights, activations and bias each in bf16 or fp32: only the C kernel multiplies mixtures."""
    w, x = random(33, 129, dtype=w_dtype), random(9, 129, seed=2, dtype=x_dtype)
    weight = pack_weight(w, in_panels=have_c())
    for bias_dtype in DTYPES:
        bias = random(33, seed=1, dtype=bias_dtype)
        exact = x.double() @ w.double().T + bias
        assert multiply(x, weight, bias).dtype == x_dtype
        out = multiply(x, weight, bias, torch.float32)
        torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-4)


def test_the_sum_with_a_residual():
    """On the CPU a pass of its own, so that a row is that of the product, rounded, and the sum, rounded."""
    for dtype in DTYPES:
        weight = pack_weight(random(33, 129, dtype=dtype), in_panels=have_c())
        x, residual = random(9, 129, seed=2, dtype=dtype), random(9, 33, seed=3, dtype=dtype)
        want = residual + linear(x, weight)
        linear_add(x, weight, None, residual)
        assert torch.equal(residual, want)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [1, 4, 20])
def test_x_may_be_strided(rows: int, dtype: torch.dtype):
    w = random(40, 24, dtype=dtype)
    weight = pack_weight(w, in_panels=have_c())
    wide = random(rows, 100, seed=2, dtype=dtype)
    for x in (
        wide[:, 30:54],
        random(24, rows, seed=3, dtype=dtype).T,
        wide[:, ::4][:, :24],
        wide[:1, :24].expand(rows, 24),
    ):
        assert_same(linear(x, weight), linear(x.contiguous(), weight))
        assert_close(linear(x, weight), x, w, None)
    bias = random(80, seed=4, dtype=dtype)[::2]
    assert_close(linear(wide[:, :24], weight, bias), wide[:, :24], w, bias)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_and_infinity_stay_in_their_rows_and_columns(dtype: torch.dtype):
    w, x = random(20, 16, dtype=dtype), random(8, 16, seed=2, dtype=dtype)
    w[3, 2] = float("inf")
    x[5, 7] = float("nan")
    for out_dtype in (torch.bfloat16, torch.float32):
        out = linear(x, pack_weight(w, in_panels=have_c()), out_dtype=out_dtype)
        assert out[5].isnan().all()
        kept = [row for row in range(8) if row != 5]
        assert out[kept, 3].isinf().all()
        assert out[kept][:, [c for c in range(20) if c != 3]].isfinite().all()


@pytest.mark.parametrize(("n", "k"), [(1, 1), (16, 5), (37, 19), (64, 128), (100, 1)])
@pytest.mark.parametrize("in_panels", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_unpack_returns_every_bit(dtype: torch.dtype, in_panels: bool, n: int, k: int):
    """All patterns of bits are weights, also NaNs with a payload."""
    words = torch.int16 if dtype is torch.bfloat16 else torch.int32
    limit = torch.iinfo(words).max
    bits = torch.randint(-limit - 1, limit, (n, k), generator=torch.Generator().manual_seed(0), dtype=words)
    weight = pack_weight(bits.view(dtype).clone(), in_panels=in_panels and have_c())
    assert torch.equal(weight.dense().view(words), bits)
    assert (weight.shape, weight.dtype, weight.dense().device.type) == ((n, k), dtype, "cpu")
    ids = torch.randint(0, n, (2 * n + 3,), generator=torch.Generator().manual_seed(1))
    assert torch.equal(weight.rows(ids).view(words), bits[ids])


def test_a_weight_is_held_once():
    for in_panels in (False, True):
        for dtype in DTYPES:
            weight = pack_weight(random(160, 64, dtype=dtype), in_panels=in_panels and have_c())
            assert weight.nbytes == 160 * 64 * dtype.itemsize


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("in_panels", [False, True])
def test_copy_overwrites_in_place(in_panels: bool, dtype: torch.dtype):
    weight = pack_weight(random(37, 19, dtype=dtype), in_panels=in_panels and have_c())
    address = weight._storage.data_ptr()
    for new in (
        random(37, 19, seed=5),
        random(19, 37, seed=6).T,
        random(37, 19, seed=7, dtype=torch.float32),
    ):
        assert weight.copy_(new) is weight
        assert torch.equal(weight.dense(), new.to(dtype))
        x = random(3, 19, dtype=dtype)
        assert_close(linear(x, weight), x, new.to(dtype), None)
    assert weight._storage.data_ptr() == address
    with pytest.raises(ValueError, match=r"\(37, 19\).*\(37, 20\)"):
        weight.copy_(random(37, 20))


@pytest.mark.parametrize("in_panels", [False, True])
def test_rows_outside_the_weight_are_refused(in_panels: bool):
    weight = pack_weight(random(37, 19), in_panels=in_panels and have_c())
    assert weight.rows(torch.tensor([], dtype=torch.int64)).shape == (0, 19)
    for wrong in (-1, 37):
        with pytest.raises(IndexError):
            weight.rows(torch.tensor([0, wrong]))


def test_shapes_that_do_not_fit_are_refused():
    weight = pack_weight(random(37, 19))
    for x, bias in [
        (random(2, 20), None),
        (random(19), None),
        (random(2, 19), random(36)),
        (random(2, 2, 19), None),
    ]:
        with pytest.raises(ValueError, match=r"takes x \[T, 19\] and bias \[37\]"):
            linear(x, weight, bias)
    with pytest.raises(ValueError, match="two dimensions"):
        pack_weight(random(3))
    with pytest.raises(ValueError, match="Only bf16 and fp32 weights"):
        pack_weight(random(3, 4, dtype=torch.float16), in_panels=True)


def test_packing_chooses_a_layout_by_dtype():
    vectors = native.describe() in ("c-avx512", "c-avx2")
    chosen = pack_weight(random(4, 4, dtype=torch.float32))
    assert isinstance(chosen, PanelMatrix) == (have_c() and vectors)
    assert isinstance(pack_weight(random(4, 4, dtype=torch.float16)), DenseMatrix)
    assert isinstance(pack_weight(random(4, 4)), PanelMatrix) == (have_c() and not dense.ONEDNN_BF16)


@pytest.mark.parametrize("in_panels", [False, True])
@pytest.mark.parametrize("activation", [None, "silu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("with_residual", [False, True])
def test_what_stands_around_a_product(in_panels: bool, activation: str | None, with_residual: bool):
    """Norm, bias, delta, activation and residual, in that order."""
    w, x = random(24, 20, dtype=torch.float32), random(3, 20, seed=1, dtype=torch.float32)
    bias, delta = random(24, seed=2, dtype=torch.float32), random(3, 24, seed=3, dtype=torch.float32)
    norm = NormWeight(random(20, seed=4, dtype=torch.float32), 1e-5, 1.0)
    residual = random(3, 12 if activation else 24, seed=5, dtype=torch.float32)
    whole = Product(x, bias, norm, activation, residual.clone() if with_residual else None, None, delta)
    expected = whole._replace(residual=residual.clone() if with_residual else None).reference(w)
    result = pack_weight(w, in_panels=in_panels and have_c()).product(whole)
    torch.testing.assert_close(result, expected)
    assert (result is whole.residual) == with_residual


def test_a_format_is_a_multiplication():
    x = random(3, 20, dtype=torch.float32)
    product = Product(x, out_dtype=torch.bfloat16)
    assert torch.equal(around(product, lambda x, bias, out_dtype: (2 * x).to(out_dtype)), (2 * x).bfloat16())
