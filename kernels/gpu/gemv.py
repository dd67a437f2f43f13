"""Matrix times a few vectors on the GPU: a decode step's linear layers, and what stands before and after.

At one to eight rows a linear layer is the reading of its weights, once. So each program takes a few whole
rows of the matrix (no split along K, no second pass), asks for its first weights before anything else, and
does the cheap work around the product itself: the RMS norm of its input, bias, gated activation, residual
add. A decoder layer then is four of these plus rotary and attention::

    qkv, _ = norm_gemv(None, residual, norm.weight, eps, qkv.weight, qkv.bias)
    gemv(attended, output.weight, residual=residual)
    act, _ = norm_gemv_gated(None, residual, post_norm.weight, eps, gate_up.weight, "silu")
    gemv(act, down.weight, residual=residual)

The norm costs no pass of its own: its scale is one number per row of x, so the product is taken with
``x * norm_weight`` and scaled at the end, when the sum of squares is complete as well.

With ``pdl`` (programmatic dependent launch, Hopper on) a launch may begin while the kernel ahead of it still
runs: it requests weights at once and waits for that kernel before it touches anything else. Weights, biases
and norm weights must therefore not be written by the kernel ahead.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from .activation import GELU, GELU_TANH, SILU, activate

MAX_ROWS = 8
"""Most rows of x in one launch."""

MAX_NORM_WIDTH = 16384
"""Widest x with a fused norm: every program computes it anew."""

_ACTIVATIONS = {"silu": SILU.value, "gelu": GELU.value, "gelu_tanh": GELU_TANH.value}


def gemv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    *,
    residual: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    pdl: bool = False,
    rows: int | None = None,
    block_k: int | None = None,
    num_warps: int | None = None,
) -> torch.Tensor:
    """Return ``x @ weight.T + bias`` for x ``[M, K]``, M <= 8, weight ``[N, K]``, bias ``[N]``: ``[M, N]``.

    x, weight and bias share one floating dtype; x's rows may be strided, weight is contiguous. Sums are fp32,
    rounded once to ``out_dtype`` (default: x's). With ``residual`` (``[M, N]`` contiguous) the result is
    added to it in fp32, rounded once, in place, and residual is returned. Otherwise the result goes to
    ``out`` (contiguous) if given. ``rows`` (of the weight in a program) and ``block_k`` (columns read at a
    time), both powers of two, and ``num_warps`` override :func:`configuration`. Raises ValueError where
    shapes, dtypes or strides do not fit.
    """
    out = residual if residual is not None else _result(x, weight.shape[0], out_dtype, out)
    _launch(out, x, weight, bias, residual, None, None, None, 0.0, 0, pdl, (rows, block_k, num_warps))
    return out


def gemv_gated(
    x: torch.Tensor,
    weight: torch.Tensor,
    activation: str,
    bias: torch.Tensor | None = None,
    *,
    out: torch.Tensor | None = None,
    pdl: bool = False,
    rows: int | None = None,
    block_k: int | None = None,
    num_warps: int | None = None,
) -> torch.Tensor:
    """Return ``act(x @ gate.T) * (x @ up.T)`` for weight ``[2I, K]`` = gate | up: ``[M, K]`` -> ``[M, I]``.

    activation is ``"silu"``, ``"gelu"`` (erf) or ``"gelu_tanh"``; bias ``[2I]``. The products stay fp32 until
    the one rounding at the end. ``rows`` counts rows of gate, each with its row of up. Otherwise as
    :func:`gemv`.
    """
    kind = _activation_number(activation, weight)
    out = _result(x, weight.shape[0] // 2, None, out)
    _launch(out, x, weight, bias, None, None, None, None, 0.0, kind, pdl, (rows, block_k, num_warps))
    return out


def norm_gemv(
    branch: torch.Tensor | None,
    residual: torch.Tensor,
    norm_weight: torch.Tensor,
    eps: float,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    *,
    residual_out: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    pdl: bool = False,
    rows: int | None = None,
    block_k: int | None = None,
    num_warps: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``(rms_norm(h) @ weight.T + bias, h)`` where ``h`` is residual, or branch + residual.

    branch and residual ``[M, K]``, M <= 8, K <= 16384, norm_weight ``[K]``, all of weight's dtype. The sum
    h is rounded to that dtype first and written to ``residual_out`` (another buffer: programs read
    ``residual`` while one writes; a new one if None); without a branch h is ``residual`` itself and nothing
    is written. The normalised row is not rounded. Otherwise as :func:`gemv`.
    """
    total = _sum_buffer(branch, residual, residual_out)
    out = _result(residual, weight.shape[0], out_dtype, out)
    config = (rows, block_k, num_warps)
    _launch(out, residual, weight, bias, None, norm_weight, branch, total, eps, 0, pdl, config)
    return out, residual if total is None else total


def norm_gemv_gated(
    branch: torch.Tensor | None,
    residual: torch.Tensor,
    norm_weight: torch.Tensor,
    eps: float,
    weight: torch.Tensor,
    activation: str,
    bias: torch.Tensor | None = None,
    *,
    residual_out: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    pdl: bool = False,
    rows: int | None = None,
    block_k: int | None = None,
    num_warps: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``(gemv_gated(rms_norm(h), weight, activation, bias), h)``, h as in :func:`norm_gemv`."""
    kind = _activation_number(activation, weight)
    total = _sum_buffer(branch, residual, residual_out)
    out = _result(residual, weight.shape[0] // 2, None, out)
    config = (rows, block_k, num_warps)
    _launch(out, residual, weight, bias, None, norm_weight, branch, total, eps, kind, pdl, config)
    return out, residual if total is None else total


def gemv_reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    *,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute :func:`gemv` in torch."""
    y = F.linear(x.float(), weight.float(), None if bias is None else bias.float())
    return y.to(out_dtype or x.dtype) if residual is None else residual.copy_(residual.float() + y)


def gemv_gated_reference(
    x: torch.Tensor, weight: torch.Tensor, activation: str, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Compute :func:`gemv_gated` in torch."""
    _activation_number(activation, weight)
    gate, up = gemv_reference(x, weight, bias, torch.float32).chunk(2, dim=-1)
    if activation == "silu":
        return (F.silu(gate) * up).to(x.dtype)
    return (F.gelu(gate, approximate="tanh" if activation == "gelu_tanh" else "none") * up).to(x.dtype)


def norm_gemv_reference(
    branch: torch.Tensor | None,
    residual: torch.Tensor,
    norm_weight: torch.Tensor,
    eps: float,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute :func:`norm_gemv` in torch."""
    total = residual if branch is None else residual + branch
    normed = F.rms_norm(total.float(), total.shape[1:], norm_weight.float(), eps)
    return gemv_reference(normed, weight, bias, out_dtype or residual.dtype), total


def norm_gemv_gated_reference(
    branch: torch.Tensor | None,
    residual: torch.Tensor,
    norm_weight: torch.Tensor,
    eps: float,
    weight: torch.Tensor,
    activation: str,
    bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute :func:`norm_gemv_gated` in torch."""
    total = residual if branch is None else residual + branch
    normed = F.rms_norm(total.float(), total.shape[1:], norm_weight.float(), eps)
    return gemv_gated_reference(normed, weight, activation, bias).to(residual.dtype), total


def configuration(n: int, k: int, m: int, gated: bool, itemsize: int = 2) -> tuple[int, int, int]:
    """Return (weight rows in a program, columns read at a time, warps) for ``[m, k] x [n, k]``.

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
    return min(rows, triton.next_power_of_2(n)), block_k, max(1, min(8, threads // 32))


def _activation_number(activation: str, weight: torch.Tensor) -> int:
    if activation not in _ACTIVATIONS:
        raise ValueError(f"activation is {activation!r}; it must be one of {sorted(_ACTIVATIONS)}.")
    if weight.shape[0] % 2:
        raise ValueError(f"A gated layer takes weights gate | up [2I, K], got {list(weight.shape)}.")
    return _ACTIVATIONS[activation]


def _result(x: torch.Tensor, size: int, dtype: torch.dtype | None, out: torch.Tensor | None) -> torch.Tensor:
    if out is None:
        return torch.empty((x.shape[0], size), dtype=dtype or x.dtype, device=x.device)
    if dtype not in (None, out.dtype):
        raise ValueError(f"out is {out.dtype} but out_dtype {dtype}; give one of them, or the same.")
    return out


def _sum_buffer(
    branch: torch.Tensor | None, residual: torch.Tensor, residual_out: torch.Tensor | None
) -> torch.Tensor | None:
    """Where h goes; None if there is nothing to add."""
    if branch is None:
        return None
    if residual_out is None:
        return torch.empty(residual.shape, dtype=residual.dtype, device=residual.device)
    if residual_out.data_ptr() in (residual.data_ptr(), branch.data_ptr()):
        raise ValueError(
            "residual_out is the memory of an input, which other programs still read; give another."
        )
    return residual_out


def _launch(
    out: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    norm_weight: torch.Tensor | None,
    branch: torch.Tensor | None,
    total: torch.Tensor | None,
    eps: float,
    kind: int,
    pdl: bool,
    config: tuple[int | None, int | None, int | None],
) -> None:
    """Check everything and run the kernel; ``kind`` is the gated activation's number, 0 without."""
    _check(out, x, weight, bias, norm_weight, branch, total, weight.shape[0] // (2 if kind else 1))
    m, k = x.shape
    n = out.shape[1]
    if not m or not n:
        return
    padded = 1 if m == 1 else max(4, triton.next_power_of_2(m))  # a few kernels for all row counts
    defaults = configuration(n, k, padded, bool(kind), weight.element_size())
    rows, block_k, num_warps = (given or default for given, default in zip(config, defaults))
    _gemv_kernel[(triton.cdiv(n, rows),)](
        out,
        x,
        weight,
        bias,
        residual,
        norm_weight,
        branch,
        total,
        m,
        n,
        x.stride(0),
        0 if branch is None else branch.stride(0),
        eps,
        K=k,
        M=padded,
        ROWS=rows,
        BLOCK_K=min(block_k, triton.next_power_of_2(k)),
        KIND=kind,
        PDL=pdl,
        num_warps=num_warps,
        **({"launch_pdl": True} if pdl else {}),
    )


def _check(
    out: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    norm_weight: torch.Tensor | None,
    branch: torch.Tensor | None,
    total: torch.Tensor | None,
    width: int,
) -> None:
    if x.dim() != 2 or weight.dim() != 2 or x.shape[1] != weight.shape[1] or x.shape[1] == 0:
        raise ValueError(f"x {list(x.shape)} and weight {list(weight.shape)} are not [M, K] and [N, K].")
    m, k = x.shape
    if m > MAX_ROWS:
        raise ValueError(
            f"x has {m} rows; this kernel takes at most {MAX_ROWS}, a matrix product takes more."
        )
    if norm_weight is not None and k > MAX_NORM_WIDTH:
        raise ValueError(f"A fused norm takes rows of at most {MAX_NORM_WIDTH}, got {k}; normalise first.")
    n = weight.shape[0]
    for name, tensor, shape in (
        ("out or residual", out, (m, width)),
        ("bias", bias, (n,)),
        ("norm_weight", norm_weight, (k,)),
        ("branch", branch, (m, k)),
        ("residual_out", total, (m, k)),
    ):
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name} is {list(tensor.shape)}; it must be {list(shape)}.")
    same = [t for t in (x, weight, bias, norm_weight, branch, total) if t is not None]
    if len({tensor.dtype for tensor in same}) > 1 or not x.is_floating_point():
        raise ValueError(
            f"x, weights, bias and residuals are {sorted({str(t.dtype) for t in same})};"
            " use one floating dtype."
        )
    contiguous = [t for t in (out, weight, bias, norm_weight, total) if t is not None]
    strided = [t for t in (x, branch) if t is not None]
    if not all(t.is_contiguous() for t in contiguous) or any(t.stride(1) != 1 for t in strided):
        raise ValueError(
            "Weights, biases and results must be contiguous, and so must each row of the inputs."
        )


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
    branch_ptr,
    total_ptr,
    k,
    start,
    m,
    x_stride,
    branch_stride,
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
            if branch_ptr is not None:
                more = _columns(branch_ptr + x_row * branch_stride + k, k, start, K, FULL, "evict_last")
                total = (x + more.to(tl.float32)).to(total_ptr.dtype.element_ty)
                end = tl.where(tl.program_id(0) == 0, K, 0)  # one program writes
                tl.store(total_ptr + x_row * K + start + k, total, mask=start + k < end)
                x = total.to(tl.float32)
            new_squares = new_squares + (squares[i] + x * x,)
            x *= _columns(norm_ptr + k, k, start, K, FULL, "evict_last").to(tl.float32)
        else:
            new_squares = new_squares + (squares[i],)
        new_sums = new_sums + (sums[i] + w * x,)
        if KIND:
            new_up_sums = new_up_sums + (up_sums[i] + u * x,)
        else:
            new_up_sums = new_up_sums + (up_sums[i],)
    return new_sums, new_up_sums, new_squares


@triton.jit
def _gemv_kernel(
    out_ptr,
    x_ptr,
    w_ptr,
    bias_ptr,
    residual_ptr,
    norm_ptr,
    branch_ptr,
    total_ptr,
    m,
    n,
    x_stride,
    branch_stride,
    eps,
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
                sums, up_sums, squares, w_now, u_now, x_ptr, norm_ptr, branch_ptr, total_ptr,
                k, start, m, x_stride, branch_stride, K, M, KIND, start + BLOCK_K <= K,
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
                sums, up_sums, squares, w_now, u_now, x_ptr, norm_ptr, branch_ptr, total_ptr,
                k, start, m, x_stride, branch_stride, K, M, KIND, K % BLOCK_K == 0,
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
