"""Rows as they are: multiplied by cuBLAS and kernels of our own on a GPU, by torch on the CPU."""

from __future__ import annotations

import functools
import platform
from types import ModuleType

import torch
import torch.nn.functional as F

from ..device import has_pdl, on_gpu
from ..embedding import embed
from ..products import Product, around

# With fewer rows, torch's own bf16 product is faster than widening the matrix.
_MIN_ROWS_TO_WIDEN = 4
# Rows of a matrix that are widened to fp32 at a time.
_WIDEN_ROWS = 1024


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


ONEDNN_BF16 = _multiplies_bf16()
"""Whether torch is the one to multiply bf16 on this CPU."""


class DenseMatrix:
    """A matrix ``[N, K]`` of floats, taken over as it is.

    ``batch_invariant``: a row of a product depends, to the last bit, on that row alone (on a GPU).
    """

    __slots__ = ("_storage", "batch_invariant", "dtype", "shape")

    def __init__(self, values: torch.Tensor, *, batch_invariant: bool = False) -> None:
        self._storage = values
        self.shape = values.shape
        self.dtype = values.dtype
        self.batch_invariant = batch_invariant

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self._storage.nbytes

    @property
    def storage(self) -> torch.Tensor:
        """The matrix itself."""
        return self._storage

    def product(self, product: Product) -> torch.Tensor:
        """All of it in one kernel where that is faster, and then nothing is rounded between."""
        if not on_gpu(product.x):
            return around(product, self._by_torch)
        if product.delta is not None:
            return around(product, self.multiply)
        pdl = has_pdl(product.x.device)
        result = _gpu().run(product, self._storage, pdl=pdl, batch_invariant=self.batch_invariant)
        if result is not None:
            return result
        if product.residual is not None and product.bias is None:
            if product.x.is_meta:
                return product.residual
            return product.residual.addmm_(product.x, self._storage.t())
        return around(product, self._by_torch)

    def multiply(
        self, x: torch.Tensor, bias: torch.Tensor | None, out_dtype: torch.dtype | None
    ) -> torch.Tensor:
        """The product with nothing around it."""
        if on_gpu(x):
            return self.product(Product(x, bias, out_dtype=out_dtype))
        return self._by_torch(x, bias, out_dtype)

    def adds_in_product(self, x: torch.Tensor) -> bool:
        """On a GPU, with one rounding for both."""
        return on_gpu(x)

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows ids ``[T]`` int64. Raises IndexError for an id outside ``0..N-1`` (on the CPU)."""
        return embed(ids, self._storage)

    def dense(self) -> torch.Tensor:
        """The matrix itself."""
        return self._storage

    def memory(self) -> torch.Tensor:
        """The matrix itself."""
        return self._storage

    def copy_(self, weight: torch.Tensor) -> DenseMatrix:
        """Overwrite the values with weight ``[N, K]`` (any dtype and device). Raises ValueError by shape."""
        check_same_shape(self.shape, weight.shape)
        self._storage.copy_(weight.detach())
        return self

    def _by_torch(
        self, x: torch.Tensor, bias: torch.Tensor | None, out_dtype: torch.dtype | None
    ) -> torch.Tensor:
        if x.is_meta:  # torch would work out the shape in Python, and load a good deal of it for that
            return x.new_empty((len(x), len(self._storage)), dtype=out_dtype or x.dtype)
        if x.is_cuda and out_dtype is torch.float32 and x.dtype is not torch.float32 and bias is None:
            # torch 2.6 has no out_dtype, and no Triton for our kernels: engines on a GPU want a newer one
            return torch.mm(x, self._storage.t(), out_dtype=torch.float32)  # type: ignore[call-arg, unused-ignore]
        if not ONEDNN_BF16 and x.dtype is torch.bfloat16 and x.is_cpu and len(x) >= _MIN_ROWS_TO_WIDEN:
            return multiply_widened(x, self._storage, bias, out_dtype)
        out = F.linear(x, self._storage, bias)
        return out if out_dtype is None else out.to(out_dtype)


def multiply_widened(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out_dtype: torch.dtype | None
) -> torch.Tensor:
    """``x @ weight.T + bias`` by torch, all operands widened to fp32, the result rounded once."""
    x32 = x.float()
    out = x.new_empty((x.size(0), weight.size(0)), dtype=x.dtype if out_dtype is None else out_dtype)
    for start in range(0, weight.size(0), _WIDEN_ROWS):
        part = slice(start, start + _WIDEN_ROWS)
        out[:, part] = F.linear(x32, weight[part].float(), None if bias is None else bias[part].float())
    return out


def check_same_shape(shape: torch.Size, other: torch.Size) -> None:
    """Raise ValueError if a matrix of ``shape`` is to take values of another."""
    if shape != other:
        raise ValueError(f"A matrix of shape {tuple(shape)} cannot take shape {tuple(other)}.")


@functools.cache
def _gpu() -> ModuleType:
    from ..gpu import linear

    return linear
