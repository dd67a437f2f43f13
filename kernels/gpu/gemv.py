"""Matrix times a few vectors on the GPU: a decode step's linear layers, and what stands before and after.

At one to eight rows a linear layer is the reading of its weights, once. So each program takes a few whole
rows of the matrix (no split along K, no second pass), asks for its first weights before anything else, and
does the cheap work around the product itself: the RMS norm of its input, bias, gated activation, residual
add. A decoder layer then is four of these plus rotary and attention::

    qkv = gemv(Product(residual, qkv.bias, norm=norm), qkv.weight)
    gemv(Product(attended, residual=residual), output.weight)
    act = gemv(Product(residual, norm=post_norm, activation="silu"), gate_up.weight)
    gemv(Product(act, residual=residual), down.weight)

The norm costs no pass of its own: its scale is one number per row of x, so the product is taken with
``x * norm_weight`` and scaled at the end, when the sum of squares is complete as well.

With ``pdl`` (programmatic dependent launch, Hopper on) a launch may begin while the kernel ahead of it still
runs: it requests weights at once and waits for that kernel before it touches anything else. Weights, biases
and norm weights must therefore not be written by the kernel ahead.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ..products import Product
from .activation import activate
from .jit import jit
from .products import activation_number

MAX_ROWS = 8
"""Most rows of x in one launch."""

MAX_NORM_WIDTH = 16384
"""Widest x with a fused norm: every program computes it anew."""


class GemvConfig(NamedTuple):
    """How a product is cut, all powers of two; every choice gives the same result up to rounding."""

    rows: int  # of the weight in a program; of gate, each with its row of up, where gated
    block_k: int  # columns read at a time
    num_warps: int


def gemv(
    product: Product, weight: torch.Tensor, *, config: GemvConfig | None = None, pdl: bool = False
) -> torch.Tensor:
    """Return the product with ``weight`` ``[N, K]``, of at most 8 rows of x, rounded once.

    The norm is not rounded before the product. ``config`` overrides :func:`gemv_config`.

    With ``pdl`` the launch may begin before the kernel ahead of it has ended. Raises ValueError for more
    rows, for a norm of more than 16384 columns, and as ``Product.check`` does.
    """
    product.check(weight)
    m, k = product.x.shape
    if m > MAX_ROWS:
        raise ValueError(f"x has {m} rows; this kernel takes at most {MAX_ROWS}, gemm takes more.")
    if product.norm is not None and k > MAX_NORM_WIDTH:
        raise ValueError(f"A fused norm takes rows of at most {MAX_NORM_WIDTH}, got {k}; normalise first.")
    out, n, kind = product.output(len(weight)), product.width(len(weight)), activation_number(product)
    if not m or not n:
        return out
    padded = 1 if m == 1 else max(4, triton.next_power_of_2(m))  # a few kernels for all row counts
    config = config or gemv_config(n, k, padded, bool(kind), weight.element_size())
    _gemv_kernel[(triton.cdiv(n, config.rows),)](
        out,
        product.x,
        weight,
        product.bias,
        product.residual,
        None if product.norm is None else product.norm.weight,
        m,
        n,
        product.x.stride(0),
        0.0 if product.norm is None else product.norm.eps,
        OFFSET=0.0 if product.norm is None else product.norm.offset,
        K=k,
        M=padded,
        ROWS=config.rows,
        BLOCK_K=min(config.block_k, triton.next_power_of_2(k)),
        KIND=kind,
        PDL=pdl,
        num_warps=config.num_warps,
        **({"launch_pdl": True} if pdl else {}),
    )
    return out


def gemv_config(n: int, k: int, m: int, gated: bool, itemsize: int = 2) -> GemvConfig:
    """Return the configuration for ``[m, k] x [n, k]``, measured on an H100.

    n counts the rows of gate alone where gated. One row of x: a thread asks for about 64 bytes of weights at
    a time. More: at most 64 of their sums fit into a thread. A warp has at least 256 columns where there are
    as many; with fewer, weights and x lie differently over the threads and go through shared memory.
    """
    block_k = min(triton.next_power_of_2(k), (2048 if m == 1 else 1024) * 2 // itemsize)
    while block_k > 256 and -k % block_k > k // 4:  # most lanes have a column
        block_k //= 2
    if m == 1:
        rows = 1 if gated or n < 8192 else 2
        if block_k <= 1024:
            rows *= 2
        threads = rows * (2 if gated else 1) * block_k * itemsize // 64
        threads = min(threads, block_k // 8)
    else:
        rows = 1 if gated or m > 4 else 2
        threads = block_k // (4 if gated and m > 4 else 8)
    return GemvConfig(min(rows, triton.next_power_of_2(n)), block_k, max(1, min(8, threads // 32)))


@triton.jit
def _columns(ptr, k, start, K: tl.constexpr, FULL: tl.constexpr, POLICY: tl.constexpr):
    """Columns from ``start`` on of what ``ptr`` points to, zeros from K on; FULL: all are below K."""
    if FULL:
        tile = tl.load(ptr + start, eviction_policy=POLICY)
    else:
        tile = tl.load(ptr + start, mask=start + k < K, other=0.0, eviction_policy=POLICY)
    return tile


@triton.jit
def _accumulate(
    sums,
    up_sums,
    squares,
    w,
    u,
    x_ptr,
    norm_ptr,
    k,
    start,
    m,
    x_stride,
    OFFSET: tl.constexpr,
    K: tl.constexpr,
    M: tl.constexpr,
    KIND: tl.constexpr,
    FULL: tl.constexpr,
):
    """Add the products of one chunk of weights, w (and u, the rows of up), to the M tiles of sums."""
    w = w.to(tl.float32)
    u = u.to(tl.float32)
    new_sums = ()
    new_up_sums = ()
    new_squares = ()
    for i in tl.static_range(M):
        x_row = tl.minimum(i, m - 1)
        x = _columns(x_ptr + x_row * x_stride + k, k, start, K, FULL, "evict_last").to(tl.float32)
        if norm_ptr is not None:
            new_squares = new_squares + (squares[i] + x * x,)
            scale = _columns(norm_ptr + k, k, start, K, FULL, "evict_last").to(tl.float32)
            if OFFSET != 0.0:
                scale += OFFSET
            x *= scale
        else:
            new_squares = new_squares + (squares[i],)
        new_sums = new_sums + (sums[i] + w * x,)
        if KIND:
            new_up_sums = new_up_sums + (up_sums[i] + u * x,)
        else:
            new_up_sums = new_up_sums + (up_sums[i],)
    return new_sums, new_up_sums, new_squares


@jit
def _gemv_kernel(
    out_ptr,
    x_ptr,
    w_ptr,
    bias_ptr,
    residual_ptr,
    norm_ptr,
    m,
    n,
    x_stride,
    eps,
    OFFSET: tl.constexpr,  # added to the norm's weight, 0: not
    K: tl.constexpr,
    M: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    KIND: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program: ROWS rows of the weight (of gate, and of up n rows below) times all rows of x.

    M tiles of sums [ROWS, BLOCK_K] stay in registers until one reduction at the end. M is a power of two;
    rows of x from m on repeat the last and are not stored.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < n
    k = tl.arange(0, BLOCK_K)[None, :]
    # rows past the end read the last one: a mask on loads would cost more
    weight_row = tl.minimum(row, n - 1).to(tl.int64)[:, None]
    w_rows = w_ptr + weight_row * K + k
    u_rows = w_ptr + (weight_row + n) * K + k  # used only where KIND
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    w = _columns(w_rows, k, 0, K, BLOCK_K <= K, "evict_first")
    u = w
    if KIND:
        u = _columns(u_rows, k, 0, K, BLOCK_K <= K, "evict_first")
    if PDL:
        tl.extra.cuda.gdc_wait()

    sums = ()
    up_sums = ()
    squares = ()
    for _ in tl.static_range(M):
        sums = sums + (tl.zeros([ROWS, BLOCK_K], tl.float32),)
        up_sums = up_sums + (tl.zeros([ROWS if KIND else 1, BLOCK_K], tl.float32),)
        squares = squares + (tl.zeros([1, BLOCK_K], tl.float32),)
    # while one chunk is multiplied the next is on its way. One row of x is worth the unrolled code
    if M == 1:
        for start in tl.static_range(0, K, BLOCK_K):
            w_now = w
            u_now = u
            if start + BLOCK_K < K:
                w = _columns(w_rows, k, start + BLOCK_K, K, start + 2 * BLOCK_K <= K, "evict_first")
                if KIND:
                    u = _columns(u_rows, k, start + BLOCK_K, K, start + 2 * BLOCK_K <= K, "evict_first")
                else:
                    u = w
            sums, up_sums, squares = _accumulate(
                sums, up_sums, squares, w_now, u_now, x_ptr, norm_ptr,
                k, start, m, x_stride, OFFSET, K, M, KIND, start + BLOCK_K <= K,
            )  # fmt: skip
    else:
        for start in range(0, K, BLOCK_K):
            w_now = w
            u_now = u
            w = _columns(w_rows, k, start + BLOCK_K, K, False, "evict_first")
            u = w
            if KIND:
                u = _columns(u_rows, k, start + BLOCK_K, K, False, "evict_first")
            sums, up_sums, squares = _accumulate(
                sums, up_sums, squares, w_now, u_now, x_ptr, norm_ptr,
                k, start, m, x_stride, OFFSET, K, M, KIND, K % BLOCK_K == 0,
            )  # fmt: skip

    for i in tl.static_range(M):
        y = tl.sum(sums[i], axis=1)
        up = y
        if KIND:
            up = tl.sum(up_sums[i], axis=1)
        if norm_ptr is not None:
            scale = tl.rsqrt(tl.sum(squares[i], axis=1) / K + eps)
            y *= scale
            up *= scale
        if bias_ptr is not None:
            y += tl.load(bias_ptr + row, mask=inside, other=0.0).to(tl.float32)
            if KIND:
                up += tl.load(bias_ptr + n + row, mask=inside, other=0.0).to(tl.float32)
        if KIND:
            y = activate(y, KIND) * up
        place = i * n + row
        kept = inside & (place < m * n)  # place: rows of x past m fall out too
        if residual_ptr is not None:
            y += tl.load(residual_ptr + place, mask=kept, other=0.0).to(tl.float32)
        tl.store(out_ptr + place, y.to(out_ptr.dtype.element_ty), mask=kept)
