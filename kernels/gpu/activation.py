"""Gated activations on the GPU: ``act(gate) * up``, and the activations that other kernels finish with."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .jit import jit

SILU = tl.constexpr(1)
GELU = tl.constexpr(2)
GELU_TANH = tl.constexpr(3)


def silu_and_mul(
    gate_up: torch.Tensor,
    *,
    out: torch.Tensor | None = None,
    block: int | None = None,
    num_warps: int = 4,
    pdl: bool = False,
) -> torch.Tensor:
    """Return ``silu(gate) * up`` for gate_up ``[T, 2I]`` = gate ``[T, I]`` | up ``[T, I]``.

    The result ``[T, I]`` in gate_up's dtype (floating) is rounded once from fp32, into a contiguous
    ``out`` if given. ``block`` is the number of columns a program does, a power of two. With ``pdl``
    the launch may begin before the kernel ahead of it has ended. Raises ValueError if gate_up is not a
    matrix of even width or out does not fit.
    """
    return _run(gate_up, SILU.value, out, block, num_warps, pdl)


def gelu_and_mul(
    gate_up: torch.Tensor,
    approximate: str,
    *,
    out: torch.Tensor | None = None,
    block: int | None = None,
    num_warps: int = 4,
    pdl: bool = False,
) -> torch.Tensor:
    """Return ``gelu(gate) * up``; approximate is ``"none"`` (erf) or ``"tanh"``, else ValueError.

    Otherwise as :func:`silu_and_mul`.
    """
    return _run(gate_up, gelu_number(approximate), out, block, num_warps, pdl)


def gelu_number(approximate: str) -> int:
    """Return the kernels' number of that GELU, or raise ValueError."""
    if approximate not in ("none", "tanh"):
        raise ValueError(f'approximate is {approximate!r}; it must be "none" or "tanh".')
    return GELU.value if approximate == "none" else GELU_TANH.value


@triton.jit
def _sigmoid(x):
    e = tl.exp(-tl.abs(x))  # never overflows
    return tl.where(x >= 0, 1.0, e) / (1.0 + e)


@triton.jit
def activate(x, KIND: tl.constexpr):
    """Apply activation KIND (``SILU``, ``GELU``, ``GELU_TANH``) to an fp32 tile, inside a kernel."""
    if KIND == SILU:
        y = x * _sigmoid(x)
    elif KIND == GELU:
        y = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    else:  # (1 + tanh z) / 2 is sigmoid(2 z)
        y = x * _sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    return y


def _run(
    gate_up: torch.Tensor, kind: int, out: torch.Tensor | None, block: int | None, num_warps: int, pdl: bool
) -> torch.Tensor:
    shape = gate_up.shape
    if len(shape) != 2 or shape[1] % 2:
        raise ValueError(f"A gated activation takes gate | up [T, 2I], got {list(shape)}.")
    rows, size = shape[0], shape[1] // 2
    if out is None:
        out = torch.empty((rows, size), dtype=gate_up.dtype, device=gate_up.device)
    elif out.shape != (rows, size) or out.dtype is not gate_up.dtype or not out.is_contiguous():
        raise ValueError(
            f"out is {list(out.shape)} {out.dtype}; it must be {[rows, size]} {gate_up.dtype}, contiguous."
        )
    if not rows or not size:
        return out
    if gate_up.stride(1) != 1:
        gate_up = gate_up.contiguous()
    if block is None:  # small steps want many programs, large ones two 16-byte loads a thread and operand
        block = min(triton.next_power_of_2(size), 1024 if rows * size < 2**20 else 2048)
    blocks = triton.cdiv(size, block)
    _gated_activation_kernel[(rows * blocks,)](
        out,
        gate_up,
        gate_up.stride(0),
        size,
        blocks,
        KIND=kind,
        BLOCK=block,
        PDL=pdl,
        num_warps=num_warps,
        **({"launch_pdl": True} if pdl else {}),
    )
    return out


@jit
def _gated_activation_kernel(
    out_ptr, in_ptr, in_stride, size, blocks, KIND: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    program = tl.program_id(0)
    row = (program // blocks).to(tl.int64)
    column = (program % blocks) * BLOCK + tl.arange(0, BLOCK)
    mask = column < size
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    place = in_ptr + row * in_stride + column
    gate = tl.load(place, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(place + size, mask=mask, other=0.0).to(tl.float32)
    y = activate(gate, KIND) * up
    tl.store(out_ptr + row * size + column, y.to(out_ptr.dtype.element_ty), mask=mask)
