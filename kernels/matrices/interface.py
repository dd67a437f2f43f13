"""What every format of a matrix is to the layers that multiply by it."""

from __future__ import annotations

from typing import Protocol

import torch

from ..products import Product


class Matrix(Protocol):
    """A matrix ``[N, K]``, held once, in whatever way its kernel reads it."""

    shape: torch.Size
    dtype: torch.dtype  # of the values that :meth:`dense` gives, and of the x that products take

    @property
    def nbytes(self) -> int:
        """Bytes held."""

    def product(self, product: Product) -> torch.Tensor:
        """``[M, N]`` or ``[M, N / 2]``, all of it done; the residual itself where there is one."""

    def multiply(
        self, x: torch.Tensor, bias: torch.Tensor | None, out_dtype: torch.dtype | None
    ) -> torch.Tensor:
        """``x @ W.T + bias`` ``[M, N]`` in ``out_dtype``, by default of x: the least that a format is."""

    def adds_in_product(self, x: torch.Tensor) -> bool:
        """Whether a product of x is added to a residual while it is written, which then costs nothing."""

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows ids ``[T]`` int64 as ``[T, K]``: the embedding lookup of tied weights."""

    def dense(self) -> torch.Tensor:
        """The values ``[N, K]``; possibly the memory itself."""

    def memory(self) -> torch.Tensor | None:
        """Where rows ``[N, K]`` are kept as they are, so that a load can write there; None if nowhere."""

    def copy_(self, weight: torch.Tensor) -> Matrix:
        """Overwrite the values with ``weight`` ``[N, K]``; the memory stays the same."""
