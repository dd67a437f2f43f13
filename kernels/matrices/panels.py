"""Rows interleaved in panels, multiplied by our own kernel on the CPU (``csrc/gemm.c``).

It sums every output in one fixed order in fp32: a row of the result depends, to the last bit, on neither the
other rows nor their number nor the number of threads. torch promises no such thing.
"""

from __future__ import annotations

from types import ModuleType

import torch

from ..native import ELEMENT_TYPES, load
from ..products import Product, around
from .dense import check_same_shape, multiply_widened

C = load()
"""The build of the C kernels for this CPU; None if there is none."""


class PanelMatrix:
    """A matrix ``[N, K]`` of bf16 or fp32 in panels of ``panel`` rows; :meth:`copy_` fills it.

    ``kernels`` is the build of the C kernels that packs and multiplies.
    """

    __slots__ = ("_address", "_kernels", "_kind", "_storage", "dtype", "panel", "shape")

    def __init__(self, shape: tuple[int, int], dtype: torch.dtype, kernels: ModuleType) -> None:
        n, k = shape
        self._kernels = kernels
        self.shape = torch.Size(shape)
        self.dtype = dtype
        self.panel: int = kernels.gemm_panel()
        self._storage = torch.empty(-(-n // self.panel) * self.panel * k, dtype=dtype, device="cpu")
        self._address = self._storage.data_ptr()  # asking each time is a tenth of a small product
        self._kind = ELEMENT_TYPES[dtype]

    @property
    def nbytes(self) -> int:
        """Bytes held, with the zeros that fill up the last panel."""
        return self._storage.nbytes

    @property
    def storage(self) -> torch.Tensor:
        """The panels, ``[panels * K * rows of a panel]``."""
        return self._storage

    def product(self, product: Product) -> torch.Tensor:
        """The multiplication with its bias, then what else there is."""
        return around(product, self.multiply)

    def multiply(
        self, x: torch.Tensor, bias: torch.Tensor | None, out_dtype: torch.dtype | None
    ) -> torch.Tensor:
        """One call of the C kernel, which takes x and bias in fp32 or bf16 and rounds once."""
        out_dtype = x.dtype if out_dtype is None else out_dtype
        x_type, out_type = ELEMENT_TYPES.get(x.dtype), ELEMENT_TYPES.get(out_dtype)
        bias_type = 0 if bias is None else ELEMENT_TYPES.get(bias.dtype)
        if x_type is None or out_type is None or bias_type is None or not x.is_cpu:
            return multiply_widened(x, self.dense(), bias, out_dtype)
        rows, k = x.shape
        row_stride, stride = x.stride()
        if stride != 1:
            x, row_stride = x.contiguous(), k
        if bias is not None:
            bias = bias.contiguous()
        n = self.shape[0]
        out = torch.empty(rows, n, dtype=out_dtype, device="cpu")
        self._kernels.gemm(
            out.data_ptr(),
            out_type,
            x.data_ptr(),
            x_type,
            row_stride,
            self._address,
            self._kind,
            0 if bias is None else bias.data_ptr(),
            bias_type,
            rows,
            n,
            k,
        )
        return out

    def adds_in_product(self, x: torch.Tensor) -> bool:  # noqa: ARG002
        """Adding is a pass of its own here: better done with what comes next."""
        return False

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows ids ``[T]`` int64 as ``[T, K]``. Raises IndexError for an id outside ``0..N-1``."""
        n, k = self.shape
        ids = ids.to(torch.int64).contiguous()
        out = self._storage.new_empty((ids.numel(), k))
        addresses = (out.data_ptr(), self._address, ids.data_ptr())
        self._kernels.gemm_rows(*addresses, ids.numel(), n, k, self._kind)
        return out

    def dense(self) -> torch.Tensor:
        """A copy ``[N, K]``, bit for bit as packed."""
        return self.rows(torch.arange(self.shape[0], dtype=torch.int64, device="cpu"))

    def memory(self) -> None:
        """Rows do not lie as they are."""

    def copy_(self, weight: torch.Tensor) -> PanelMatrix:
        """Pack weight ``[N, K]`` (any dtype and device) into the memory. Raises ValueError by shape."""
        check_same_shape(self.shape, weight.shape)
        weight = weight.to(self._storage).contiguous()
        self._kernels.gemm_pack(self._address, weight.data_ptr(), *self.shape, self._kind)
        return self
