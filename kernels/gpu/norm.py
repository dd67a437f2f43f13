"""RMS norm on the GPU, alone or after a residual add: one program per row, the row in registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .jit import jit

MAX_WIDTH = 16384
"""Widest row that one program holds in registers."""


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    offset: float = 0.0,
    *,
    out: torch.Tensor | None = None,
    num_warps: int | None = None,
    pdl: bool = False,
) -> torch.Tensor:
    """Return ``x / sqrt(mean(x^2) + eps) * (offset + weight)`` over the last dimension.

    x ``[T, H]`` (rows may be strided) and weight ``[H]`` of one floating dtype, H <= 16384; the result
    ``[T, H]`` is rounded once from fp32, into ``out`` if given. With ``pdl`` the launch may begin before
    the kernel ahead of it has ended. Raises ValueError if sizes, dtypes or strides do not fit.
    """
    return _run(x, None, weight, eps, offset, out, num_warps, pdl)


def add_rms_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    offset: float = 0.0,
    *,
    out: torch.Tensor | None = None,
    num_warps: int | None = None,
    pdl: bool = False,
) -> torch.Tensor:
    """Add x to residual in place and return ``rms_norm(residual, weight, eps, offset)``.

    x and residual ``[T, H]`` (rows may be strided) and weight ``[H]`` of one floating dtype. The sum is
    rounded to that dtype before it is normalised. ``out`` may be x. Otherwise as :func:`rms_norm`.
    """
    return _run(x, residual, weight, eps, offset, out, num_warps, pdl)


def _run(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    eps: float,
    offset: float,
    out: torch.Tensor | None,
    num_warps: int | None,
    pdl: bool,
) -> torch.Tensor:
    if x.dim() == 2 and x.stride(1) != 1:
        x = x.contiguous()
    _check(x, residual, weight, out)
    if out is None:
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rows, size = x.shape
    if not rows or not size:
        return out
    block = triton.next_power_of_2(size)
    _rms_norm_kernel[(rows,)](
        out,
        x,
        residual,
        weight.contiguous(),
        out.stride(0),
        x.stride(0),
        0 if residual is None else residual.stride(0),
        eps,
        OFFSET=offset,
        SIZE=size,
        BLOCK=block,
        PDL=pdl,
        # 16 elements a thread: two 16-byte loads, enough in flight at one row and at thousands
        num_warps=num_warps or min(16, max(1, block // 512)),
        **({"launch_pdl": True} if pdl else {}),
    )
    return out


def _check(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, out: torch.Tensor | None
) -> None:
    others = [tensor for tensor in (residual, out) if tensor is not None]
    if x.dim() != 2 or x.shape[1:] != weight.shape or any(tensor.shape != x.shape for tensor in others):
        raise ValueError(
            f"RMS norm got x {list(x.shape)}, weight {list(weight.shape)}, residual or out"
            f" {[list(tensor.shape) for tensor in others]};"
            " it takes x [T, H], a residual and out of x's shape and weight [H]."
        )
    if x.shape[1] > MAX_WIDTH:
        raise ValueError(f"RMS norm got rows of {x.shape[1]}; a program holds at most {MAX_WIDTH}.")
    dtypes = {tensor.dtype for tensor in (x, weight, *others)}
    if len(dtypes) > 1 or not x.is_floating_point():
        raise ValueError(
            f"RMS norm got the dtypes {sorted(map(str, dtypes))}; it takes one floating dtype for all."
        )
    if any(tensor.stride(1) != 1 for tensor in others):
        raise ValueError(
            "The residual and out are written in place: their last dimension must be contiguous."
        )


@jit
def _rms_norm_kernel(
    out_ptr,
    x_ptr,
    residual_ptr,
    weight_ptr,
    out_stride,
    x_stride,
    residual_stride,
    eps,
    OFFSET: tl.constexpr,  # added to the weight, 0: not
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    mask = column < SIZE
    weight = tl.load(weight_ptr + column, mask=mask, other=0.0)  # no earlier kernel writes it
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    x = tl.load(x_ptr + row * x_stride + column, mask=mask, other=0.0).to(tl.float32)
    if residual_ptr is not None:
        place = residual_ptr + row * residual_stride + column
        total = (x + tl.load(place, mask=mask, other=0.0).to(tl.float32)).to(residual_ptr.dtype.element_ty)
        tl.store(place, total, mask=mask)
        x = total.to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, axis=0) / SIZE + eps)
    weight = weight.to(tl.float32)
    if OFFSET != 0.0:
        weight += OFFSET
    y = x * scale * weight
    tl.store(out_ptr + row * out_stride + column, y.to(out_ptr.dtype.element_ty), mask=mask)
