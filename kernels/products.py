"""One matrix product with what stands before and after it, whatever the format of the matrix.

A matrix does a :class:`Product` whole. Where its kernels know only the multiplication, :func:`around` does
the rest, so that a new format is a multiplication and nothing more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

from .activation import ACTIVATIONS, gated_activation
from .norm import NormWeight, rms_norm


class Product(NamedTuple):
    """``x' @ W.T + bias`` for x ``[M, K]``, a matrix W ``[N, K]``, bias ``[N]``, sums in fp32.

    x' is x, or its ``norm``. ``delta`` ``[M, N]`` is added to the product. With an ``activation`` (one of
    ``ACTIVATIONS``) the matrix is gate | up ``[2I, K]`` and the result ``act(gate) * up`` ``[M, I]``. With a
    ``residual`` of the result's shape the result is added to it in place. Otherwise it is of ``out_dtype``,
    by default that of x. Rows of x may be strided, everything else is contiguous.
    """

    x: torch.Tensor
    bias: torch.Tensor | None = None
    norm: NormWeight | None = None
    activation: str | None = None
    residual: torch.Tensor | None = None
    out_dtype: torch.dtype | None = None
    delta: torch.Tensor | None = None

    def width(self, num_rows: int) -> int:
        """Columns of the result for a matrix of ``num_rows``."""
        return num_rows // 2 if self.activation else num_rows

    def output(self, num_rows: int) -> torch.Tensor:
        """Where the result goes: the residual, or new memory."""
        if self.residual is not None:
            return self.residual
        shape = (self.x.shape[0], self.width(num_rows))
        return torch.empty(shape, dtype=self.out_dtype or self.x.dtype, device=self.x.device)

    def reference(self, weight: torch.Tensor) -> torch.Tensor:
        """Compute the product with ``weight`` ``[N, K]`` in torch, rounded once."""
        x = self.x.float()
        if self.norm is not None:
            x = F.rms_norm(x, x.shape[1:], self.norm.weight.float() + self.norm.offset, self.norm.eps)
        y = F.linear(x, weight.float(), None if self.bias is None else self.bias.float())
        if self.delta is not None:
            y = y + self.delta.float()
        if self.activation is not None:
            gate, up = y.chunk(2, dim=-1)
            approximate = "tanh" if self.activation == "gelu_tanh" else "none"
            y = (F.silu(gate) if self.activation == "silu" else F.gelu(gate, approximate=approximate)) * up
        if self.residual is not None:
            return self.residual.copy_(self.residual.float() + y)
        return y.to(self.out_dtype or self.x.dtype)

    def check(self, weight: torch.Tensor) -> None:
        """Raise ValueError where shapes, dtypes or strides do not fit a ``weight`` of rows as they are."""
        x, (n, k) = self.x, weight.shape
        if x.dim() != 2 or x.shape[1] != k or k == 0:
            raise ValueError(f"x {list(x.shape)} and weight {[n, k]} are not [M, K] and [N, K].")
        if self.activation is not None and self.activation not in ACTIVATIONS:
            raise ValueError(f"activation is {self.activation!r}; it must be one of {sorted(ACTIVATIONS)}.")
        if self.activation is not None and n % 2:
            raise ValueError(f"A gated product takes weights gate | up [2I, K], got {[n, k]}.")
        if self.residual is not None and self.out_dtype not in (None, self.residual.dtype):
            raise ValueError(
                f"The residual is {self.residual.dtype}, so out_dtype cannot be {self.out_dtype}."
            )
        if self.delta is not None:
            raise ValueError("This kernel adds no delta; take the product by kernels.products.around.")
        norm_weight = None if self.norm is None else self.norm.weight
        for name, tensor, shape in (
            ("bias", self.bias, (n,)),
            ("the norm's weight", norm_weight, (k,)),
            ("residual", self.residual, (x.shape[0], self.width(n))),
        ):
            if tensor is not None and tensor.shape != shape:
                raise ValueError(f"{name} is {list(tensor.shape)}; it must be {list(shape)}.")
        dtypes = {t.dtype for t in (x, weight, self.bias, norm_weight) if t is not None}
        if len(dtypes) > 1 or not x.is_floating_point():
            raise ValueError(f"x, weights and bias are {sorted(map(str, dtypes))}; use one floating dtype.")
        others = [t for t in (weight, self.bias, norm_weight, self.residual) if t is not None]
        if x.stride(1) != 1 or not all(tensor.is_contiguous() for tensor in others):
            raise ValueError("Weights, biases and residuals must be contiguous, and so must each row of x.")


Multiply = Callable[[torch.Tensor, "torch.Tensor | None", "torch.dtype | None"], torch.Tensor]
"""``multiply(x, bias, out_dtype)``: ``x @ W.T + bias`` ``[M, N]`` in ``out_dtype``, by default that of x."""


def around(product: Product, multiply: Multiply) -> torch.Tensor:
    """The product by ``multiply``, and all that stands around it as operations of their own."""
    x = product.x if product.norm is None else rms_norm(product.x, *product.norm)
    result = multiply(x, product.bias, product.out_dtype)
    if product.delta is not None:
        result += product.delta
    if product.activation is not None:
        result = gated_activation(result, product.activation)
    if product.residual is None:
        return result
    return product.residual.add_(result)
