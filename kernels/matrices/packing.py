"""Which format a matrix of floats takes, and so who multiplies by it.

========================  ==========================================================================
on a GPU                  cuBLAS; our own kernels where x has few rows (``gpu/linear.py``): dense
fp32, C with AVX          our own kernel (``csrc/gemm.c``): panels
fp32 elsewhere            torch: dense
bf16 instructions         torch (oneDNN with AMX or AVX-512 BF16): dense
bf16, C extension built   our own kernel: panels
bf16, neither             torch, widened to fp32 a piece at a time (slow): dense
========================  ==========================================================================
"""

from __future__ import annotations

import torch

from ..native import ELEMENT_TYPES, describe
from . import dense, panels
from .dense import DenseMatrix
from .panels import PanelMatrix


def pack_weight(
    weight: torch.Tensor, *, in_panels: bool | None = None, batch_invariant: bool = False
) -> DenseMatrix | PanelMatrix:
    """The weight ``[N, K]`` in the layout of its multiplication.

    Takes weight over where it is stored as it is and contiguous (so ``copy_`` writes to that memory), else
    copies it. ``in_panels`` overrules the choice of kernel described above: False keeps the rows as they
    are, True asks for the C kernel (bf16 and fp32 on the CPU). ``batch_invariant`` asks for a kernel whose
    result for a row depends, to the last bit, on that row alone: the C kernel on the CPU, one way to cut all
    products on a GPU. Raises ValueError if that is not possible.
    """
    if weight.dim() != 2:
        raise ValueError(f"A weight has two dimensions [N, K], got shape {tuple(weight.shape)}.")
    if in_panels is None or batch_invariant:
        in_panels = weight.is_cpu and (batch_invariant or is_multiplied_in_c(weight.dtype))
    if not in_panels:
        return DenseMatrix(weight.detach().contiguous(), batch_invariant=batch_invariant)
    kernels = panels.C
    if kernels is None or not weight.is_cpu or weight.dtype not in ELEMENT_TYPES:
        raise ValueError(
            f"Only bf16 and fp32 weights on the CPU go into panels, and only with the C extension "
            f"(built: {kernels is not None}); got {weight.dtype} on {weight.device}."
        )
    n, k = weight.shape
    return PanelMatrix((n, k), weight.dtype, kernels).copy_(weight)


def is_multiplied_in_c(dtype: torch.dtype) -> bool:
    """Whether weights of that dtype on the CPU go into panels when nobody says otherwise."""
    if dtype is torch.float32:  # measured on AVX-512 and AVX2; elsewhere torch has other libraries
        return describe() in ("c-avx512", "c-avx2") and panels.C is not None
    return panels.C is not None and dtype is torch.bfloat16 and not dense.ONEDNN_BF16
