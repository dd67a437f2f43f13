"""Matrix products of some tens to hundreds of rows on the GPU, with what stands before and after them.

At that size a product of a small model takes a few microseconds, of which cuBLAS spends a good part on
launching, waiting and reading its first weights. Here a launch may begin while the kernel ahead of it still
runs (``pdl``, programmatic dependent launch, Hopper on): it asks the L2 cache for its weights and waits for
that kernel before it touches anything else. Bias, gated activation and residual add cost no kernel of their
own. A norm before does: fused, x would have to pass through registers, which takes 1.5 times as long.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from ..products import Product
from .activation import activate
from .attention_checks import dot_type
from .jit import jit
from .products import activation_number


class GemmConfig(NamedTuple):
    """How a product is cut; every choice gives the same result up to rounding."""

    block_m: int  # rows of x in a tile
    block_n: int  # rows of the weight in a tile; of gate, with as many of up, where gated
    block_k: int  # columns read at a time
    num_warps: int
    num_stages: int
    use_tma: bool = False  # read tiles through tensor descriptors
    fill: bool = False  # repeat x where it does not fill a tile: reading its last row again and again is slow


def gemm(
    product: Product, weight: torch.Tensor, *, config: GemmConfig | None = None, pdl: bool = False
) -> torch.Tensor:
    """Return the product with ``weight`` ``[N, K]``, rounded once; ``config`` overrides :func:`gemm_config`.

    With ``pdl`` the launch may begin before the kernel ahead of it has ended; weights, biases and norm
    weights must then not be written by that kernel. Raises ValueError for a norm, and as
    ``Product.check`` does.
    """
    product.check(weight)
    if product.norm is not None:
        raise ValueError("gemm computes no norm; normalise x first, or use gemv for up to 8 rows.")
    x, kind = product.x, activation_number(product)
    (m, k), n = x.shape, product.width(len(weight))
    out = product.output(len(weight))
    if not m or not n:
        return out
    config = config or gemm_config(m, n, k, gated=bool(kind)) or FALLBACK
    lines = triton.next_power_of_2(triton.cdiv(k * weight.element_size(), 128))
    block_k = min(config.block_k, max(16, triton.next_power_of_2(k)))
    if config.fill and m < config.block_m:
        x = x.repeat(triton.cdiv(config.block_m, m), 1)  # no result of the copies is stored
    aligned = all(t.stride(0) * t.element_size() % 16 == t.data_ptr() % 16 == 0 for t in (x, weight))
    use_tma = config.use_tma and aligned
    tiles = triton.cdiv(m, config.block_m) * triton.cdiv(n, config.block_n)
    _gemm_kernel[(tiles,)](
        out,
        x,
        weight,
        _descriptor(x, config.block_m, block_k) if use_tma else x,
        _descriptor(weight, config.block_n, block_k) if use_tma else weight,
        product.bias,
        product.residual,
        m,
        len(x),
        n,
        x.stride(0),
        K=k,
        KIND=kind,
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        BLOCK_K=block_k,
        USE_TMA=use_tma,
        PDL=pdl,
        LINES=lines if k <= _LONGEST_PREFETCH else 0,
        DOT=dot_type(x),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        **({"launch_pdl": True} if pdl else {}),
    )
    return out


FALLBACK = GemmConfig(64, 64, 64, 4, 4)
"""For sizes that nobody measured."""

_LONGEST_PREFETCH = 1024
"""Columns of a weight up to which a program asks the L2 cache for all of its rows while it waits."""


def gemm_config(m: int, n: int, k: int, *, gated: bool) -> GemmConfig | None:
    """Return the configuration for ``[m, k] x [n, k]``, measured on an H100; None where cuBLAS is faster.

    n counts the rows of gate alone where gated. Longer sums than those of small models are cuBLAS's: it
    divides them among programs, and its tiles take turns better.
    """
    if k > 1024 or m > 512:
        return None
    if not gated:
        return GemmConfig(64, 64, 128, 4, 4, use_tma=True) if n <= 2048 else None
    if m <= 16:
        return None
    if m <= 64:
        return GemmConfig(64, 64, 64, 4, 5)
    if m <= 256:
        return GemmConfig(128, 64 if m <= 128 else 128, 64, 8, 4)
    return None


def invariant_config(m: int, *, gated: bool, itemsize: int) -> GemmConfig:
    """Return a configuration whose results for a row are bitwise the same at every m.

    Sums run over k in one order, by the same instruction (64 rows of a tile at a time, 16 columns; exact
    fp32 products for fp32), so how many rows and columns a tile has does not show. How many columns are read
    at a time would: where one reading is all, the compiler starts the sum with what is added to it.
    """
    if itemsize > 2:
        return GemmConfig(32, 64, 32, 4, 2)
    if m <= 64:
        return GemmConfig(64, 32, 128, 4, 6, use_tma=True, fill=True)
    if gated:
        return GemmConfig(128, 64, 128, 4, 3, use_tma=True)
    return GemmConfig(128, 128, 128, 8, 3, use_tma=True)


def _descriptor(matrix: torch.Tensor, rows: int, columns: int) -> TensorDescriptor:
    return TensorDescriptor(matrix, list(matrix.shape), list(matrix.stride()), [rows, columns])


@triton.jit
def _tile(ptr, desc, row, column, K: tl.constexpr, BLOCK_K: tl.constexpr, USE_TMA: tl.constexpr):
    """Columns from ``column`` on; zeros from K on. ``ptr`` [rows, BLOCK_K] points to column 0."""
    if USE_TMA:
        tile = desc.load([row, column])
    elif K % BLOCK_K == 0:
        tile = tl.load(ptr + column)
    else:
        tile = tl.load(ptr + column, mask=(column + tl.arange(0, BLOCK_K) < K)[None, :], other=0.0)
    return tile


@triton.jit
def _prefetch(rows, K: tl.constexpr, LINES: tl.constexpr):
    """Ask the L2 cache for the rows that ``rows`` [n, 1] points to: K elements, LINES times 128 bytes."""
    line = 1024 // rows.dtype.element_ty.primitive_bitwidth
    columns = tl.minimum(tl.arange(0, LINES) * line, K - 1)[None, :]
    asm: tl.constexpr = "prefetch.global.L2 [$1]; mov.u32 $0, 0;"
    tl.inline_asm_elementwise(asm, "=r,l", [rows + columns], dtype=tl.int32, is_pure=False, pack=1)


# One kernel for all numbers of rows: else a count's value would make another.
@jit(do_not_specialize=["m", "num_x"])
def _gemm_kernel(
    out_ptr,
    x_ptr,
    w_ptr,
    x_desc,  # tensor descriptors, read if USE_TMA
    w_desc,
    bias_ptr,
    residual_ptr,
    m,
    num_x,  # rows that x has, at least m
    n,
    x_stride,
    K: tl.constexpr,
    KIND: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    USE_TMA: tl.constexpr,
    PDL: tl.constexpr,
    LINES: tl.constexpr,  # of the L2 cache, in a row of the weight, to ask for: a power of two, or 0
    DOT: tl.constexpr,
):
    """One program: a tile of the result. The tiles that share weights run side by side."""
    tiles_m = tl.cdiv(m, BLOCK_M)
    first_row = tl.program_id(0) % tiles_m * BLOCK_M
    first_column = tl.program_id(0) // tiles_m * BLOCK_N
    row = first_row + tl.arange(0, BLOCK_M)
    column = first_column + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)[None, :]
    # what lies past the end repeats the last row and is not stored
    x_rows = x_ptr + tl.minimum(row, num_x - 1).to(tl.int64)[:, None] * x_stride
    weight_row = tl.minimum(column, n - 1).to(tl.int64)[:, None]
    w_rows = w_ptr + weight_row * K
    u_rows = w_ptr + (weight_row + n) * K  # used only where KIND
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        if LINES > 0:
            _prefetch(w_rows, K, LINES)
            if KIND:
                _prefetch(u_rows, K, LINES)
        tl.extra.cuda.gdc_wait()

    inside = (row < m)[:, None] & (column < n)[None, :]
    place = row.to(tl.int64)[:, None] * n + column[None, :]
    if residual_ptr is not None:  # on its way while the product is taken
        residual = tl.load(residual_ptr + place, mask=inside, other=0.0)
    sums = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    up_sums = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, K, BLOCK_K):
        x = _tile(x_rows + k, x_desc, first_row, start, K, BLOCK_K, USE_TMA)
        w = _tile(w_rows + k, w_desc, first_column, start, K, BLOCK_K, USE_TMA)
        x = x.to(DOT)
        sums = tl.dot(x, tl.trans(w.to(DOT)), sums, input_precision="ieee")
        if KIND:
            u = _tile(u_rows + k, w_desc, first_column + n, start, K, BLOCK_K, USE_TMA)
            up_sums = tl.dot(x, tl.trans(u.to(DOT)), up_sums, input_precision="ieee")

    y = sums
    up = up_sums
    if bias_ptr is not None:
        y += tl.load(bias_ptr + column, mask=column < n, other=0.0).to(tl.float32)[None, :]
        if KIND:
            up += tl.load(bias_ptr + n + column, mask=column < n, other=0.0).to(tl.float32)[None, :]
    if KIND:
        y = activate(y, KIND) * up
    if residual_ptr is not None:
        y += residual.to(tl.float32)
    tl.store(out_ptr + place, y.to(out_ptr.dtype.element_ty), mask=inside)
