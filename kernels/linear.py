"""Linear layers: ``y = x @ weight.T + bias`` with each weight held once, in the layout its kernel reads.

Who multiplies is settled when a weight is packed:

========================  ==========================================================================
on a GPU                  cuBLAS; our own kernels where x has few rows (``gpu/linear.py``)
fp32, C with AVX          our own kernel (``csrc/gemm.c``), rows interleaved in panels
fp32 elsewhere            torch, rows as they are
bf16 instructions         torch (oneDNN with AMX or AVX-512 BF16), rows as they are
bf16, C extension built   our own kernel, in panels
bf16, neither             torch, rows as they are, widened to fp32 a piece at a time (slow)
========================  ==========================================================================

On the CPU, ``in_panels=True`` asks for our own kernel whatever is fastest, for bf16 and fp32. It sums
every output in one fixed order in fp32: a row of the result depends, to the last bit, on neither the
other rows nor their number nor the number of threads. torch promises no such thing. Inference only:
nothing here records gradients.
"""

from __future__ import annotations

import functools
import platform
from types import ModuleType

import torch
import torch.nn.functional as F

from .activation import gated_activation
from .device import has_pdl, on_gpu
from .embedding import embed
from .native import ELEMENT_TYPES, describe, load
from .norm import NormWeight, rms_norm

_C = load()


def _multiplies_bf16() -> bool:
    """Whether torch multiplies bf16 by instructions made for it.

    oneDNN says yes to every AVX-512, but without such instructions it takes two to five times as long as the
    C kernel.
    """
    if not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return False
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    return torch.cpu._is_avx512_bf16_supported()


_ONEDNN_BF16 = _multiplies_bf16()

# With fewer rows, torch's own bf16 product is faster than widening the weight.
_MIN_ROWS_TO_WIDEN = 4
# Rows of a weight that are widened to fp32 at a time.
_WIDEN_ROWS = 1024


class PackedWeight:
    """A weight ``[N, K]`` in the memory layout of its kernel; made by :func:`pack_weight`.

    ``shape`` is ``[N, K]``. ``panel`` is the number of rows interleaved in one panel, or 0 if the
    rows are stored as they are.
    """

    __slots__ = ("_storage", "batch_invariant", "dtype", "panel", "shape")

    def __init__(
        self, storage: torch.Tensor, shape: torch.Size, panel: int, *, batch_invariant: bool = False
    ) -> None:
        self._storage = storage
        self.shape = shape
        self.dtype = storage.dtype
        self.panel = panel
        self.batch_invariant = batch_invariant

    @property
    def device(self) -> torch.device:
        """The device that holds the weight."""
        return self._storage.device

    @property
    def nbytes(self) -> int:
        """Bytes held, with the zeros that fill up the last panel."""
        return self._storage.nbytes

    def unpack(self) -> torch.Tensor:
        """Return the weight as a tensor ``[N, K]``, bit for bit as packed; a copy if it is in panels."""
        if not self.panel:
            return self._storage
        return self.rows(torch.arange(self.shape[0], dtype=torch.int64, device="cpu"))

    def copy_(self, weight: torch.Tensor) -> PackedWeight:
        """Overwrite the values with weight ``[N, K]`` (any dtype and device); the memory stays the same.

        Raises ValueError if the shape differs.
        """
        if weight.shape != self.shape:
            raise ValueError(
                f"A packed weight of shape {tuple(self.shape)} cannot take shape {tuple(weight.shape)}."
            )
        if not self.panel:
            self._storage.copy_(weight.detach())
            return self
        weight = weight.to(self._storage).contiguous()
        n, k = self.shape
        kind = ELEMENT_TYPES[self.dtype]
        _C.gemm_pack(self._storage.data_ptr(), weight.data_ptr(), n, k, kind)
        return self

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """Return rows ids ``[T]`` int64 as ``[T, K]``: the embedding lookup of tied weights.

        Raises IndexError for an id outside ``0..N-1`` (on the CPU).
        """
        if not self.panel:
            return embed(ids, self._storage)
        n, k = self.shape
        ids = ids.to(torch.int64).contiguous()
        out = self._storage.new_empty((ids.numel(), k))
        _C.gemm_rows(
            out.data_ptr(),
            self._storage.data_ptr(),
            ids.data_ptr(),
            ids.numel(),
            n,
            k,
            ELEMENT_TYPES[self.dtype],
        )
        return out


def pack_weight(
    weight: torch.Tensor, *, in_panels: bool | None = None, batch_invariant: bool = False
) -> PackedWeight:
    """Pack weight ``[N, K]`` for :func:`linear`.

    Takes weight over where it is stored as it is and contiguous (so ``copy_`` writes to that memory), else
    copies it. ``in_panels`` overrules the choice of kernel described above: False keeps the rows as they
    are, True asks for the C kernel (bf16 and fp32 on the CPU). ``batch_invariant`` asks for a kernel whose
    result for a row depends, to the last bit, on that row alone: the C kernel on the CPU, one way to cut all
    products on a GPU. Raises ValueError if that is not possible.
    """
    if weight.dim() != 2:
        raise ValueError(f"A weight has two dimensions [N, K], got shape {tuple(weight.shape)}.")
    if batch_invariant and weight.is_cuda:
        return PackedWeight(weight.detach().contiguous(), weight.shape, 0, batch_invariant=True)
    if batch_invariant:
        in_panels = True
    possible = _C is not None and weight.is_cpu and weight.dtype in ELEMENT_TYPES
    if in_panels is None:
        in_panels = weight.is_cpu and is_multiplied_in_c(weight.dtype)
    if not in_panels:
        return PackedWeight(weight.detach().contiguous(), weight.shape, 0)
    if not possible:
        raise ValueError(
            f"Only bf16 and fp32 weights on the CPU go into panels, and only with the C extension "
            f"(built: {_C is not None}); got {weight.dtype} on {weight.device}."
        )
    n, k = weight.shape
    panel = _C.gemm_panel()
    storage = torch.empty(-(-n // panel) * panel * k, dtype=weight.dtype, device="cpu")
    return PackedWeight(storage, weight.shape, panel).copy_(weight)


def is_multiplied_in_c(dtype: torch.dtype) -> bool:
    """Whether weights of that dtype on the CPU go into panels when nobody says otherwise."""
    if dtype is torch.float32:  # measured on AVX-512 and AVX2; elsewhere torch has other libraries
        return describe() in ("c-avx512", "c-avx2") and _C is not None
    return _C is not None and dtype is torch.bfloat16 and not _ONEDNN_BF16


def linear(
    x: torch.Tensor,
    weight: PackedWeight,
    bias: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    *,
    norm: NormWeight | None = None,
    activation: str | None = None,
) -> torch.Tensor:
    """Return ``x @ weight.T + bias``: x ``[T, K]``, bias ``[N]``, result ``[T, N]``.

    With a ``norm`` x is normalised first; with one of ``ACTIVATIONS`` the weight is gate | up ``[2I, K]`` and
    the result ``act(gate) * up`` ``[T, I]``. Both are one kernel with the product where that is faster, and
    then nothing is rounded between.

    The result has ``out_dtype``, by default the dtype of x. Sums are fp32. The C kernel takes x and bias
    in fp32 or bf16 and rounds once, to ``out_dtype``; where torch multiplies, x and bias share the dtype
    of weight, and the result is rounded to that first. Raises ValueError if the shapes do not fit.
    """
    n, k = weight.shape
    if len(x.shape) != 2 or x.shape[1] != k or (bias is not None and bias.shape != (n,)):
        raise ValueError(
            f"A weight of shape {(n, k)} takes x [T, {k}] and bias [{n}], got x {tuple(x.shape)} "
            f"and bias {None if bias is None else tuple(bias.shape)}."
        )
    if on_gpu(x):
        result = _run_product(x, weight, bias, out_dtype=out_dtype, norm=norm, activation=activation)
        if result is not None:
            return result
    if norm is not None:
        x = rms_norm(x, *norm)
    result = _multiply(x, weight, bias, out_dtype)
    return result if activation is None else gated_activation(result, activation)


def linear_add(
    x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None, residual: torch.Tensor
) -> None:
    """Add :func:`linear` of x to residual ``[T, N]`` in place.

    On a GPU the product adds as it writes, with one rounding for both. On a CPU adding is a pass of its own:
    better take the product there, and add it with what comes next.
    """
    if not on_gpu(x):
        residual += linear(x, weight, bias)
    elif _run_product(x, weight, bias, residual=residual) is None:
        if bias is None:
            residual.addmm_(x, weight.unpack().t())
        else:
            residual += linear(x, weight, bias)


def _multiply(
    x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None, out_dtype: torch.dtype | None
) -> torch.Tensor:
    """The product alone, by the C kernel or torch."""
    if weight.panel:
        return _linear_panels(x, weight, bias, x.dtype if out_dtype is None else out_dtype)
    if x.is_cuda and out_dtype is torch.float32 and x.dtype is not torch.float32 and bias is None:
        return torch.mm(x, weight.unpack().t(), out_dtype=torch.float32)
    if not _ONEDNN_BF16 and x.dtype is torch.bfloat16 and x.is_cpu and len(x) >= _MIN_ROWS_TO_WIDEN:
        return linear_reference(x, weight, bias, out_dtype)
    out = F.linear(x, weight.unpack(), bias)
    return out if out_dtype is None else out.to(out_dtype)


def _run_product(
    x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None, **around: object
) -> torch.Tensor | None:
    """A product on the GPU by one of our kernels, with what is around it; None where cuBLAS is faster."""
    gpu = _gpu()
    product = gpu.Product(x, weight.unpack(), bias, **around)
    return gpu.run(product, pdl=has_pdl(x.device), batch_invariant=weight.batch_invariant)


@functools.cache
def _gpu() -> ModuleType:
    from .gpu import linear

    return linear


def _linear_panels(
    x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None, out_dtype: torch.dtype
) -> torch.Tensor:
    """Multiply through the C kernel."""
    x_type, out_type = ELEMENT_TYPES.get(x.dtype), ELEMENT_TYPES.get(out_dtype)
    bias_type = 0 if bias is None else ELEMENT_TYPES.get(bias.dtype)
    if x_type is None or out_type is None or bias_type is None or not x.is_cpu:
        return linear_reference(x, weight, bias, out_dtype)
    rows, k = x.shape
    n = weight.shape[0]
    row_stride, stride = x.stride()
    if stride != 1:
        x, row_stride = x.contiguous(), k
    if bias is not None:
        bias = bias.contiguous()
    out = torch.empty(rows, n, dtype=out_dtype, device="cpu")
    _C.gemm(
        out.data_ptr(),
        out_type,
        x.data_ptr(),
        x_type,
        row_stride,
        weight._storage.data_ptr(),
        ELEMENT_TYPES[weight.dtype],
        0 if bias is None else bias.data_ptr(),
        bias_type,
        rows,
        n,
        k,
    )
    return out


def linear_reference(
    x: torch.Tensor,
    weight: PackedWeight,
    bias: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Compute :func:`linear` in torch: all operands widened to fp32, the result rounded once."""
    x32 = x.float()
    rows = weight.unpack()
    out = x.new_empty((x.size(0), rows.size(0)), dtype=x.dtype if out_dtype is None else out_dtype)
    for start in range(0, rows.size(0), _WIDEN_ROWS):
        part = slice(start, start + _WIDEN_ROWS)
        out[:, part] = F.linear(x32, rows[part].float(), None if bias is None else bias[part].float())
    return out
