"""What the matrix products of a decoder layer have in common, and the reference of them all.

One product is ``y = x' @ weight.T + bias`` with what stands before and after it: x' is x or its RMS norm, and
y is passed on, activated and gated, or added to a residual. :func:`gemv` reads the weights for a few rows of
x, :func:`gemm` multiplies tens to hundreds; both take the same arguments.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from ..norm import NormWeight
from .activation import GELU, GELU_TANH, SILU

ACTIVATION_NUMBERS = {"silu": SILU.value, "gelu": GELU.value, "gelu_tanh": GELU_TANH.value}
"""What the kernels call an activation; 0 is none."""


class Product(NamedTuple):
    """``x' @ weight.T + bias`` for x ``[M, K]``, weight ``[N, K]``, bias ``[N]``, sums in fp32, rounded once.

    x' is x, or its ``norm`` (which is not rounded first). With an ``activation`` (``"silu"``, ``"gelu"``,
    which is erf's, ``"gelu_tanh"``) the weight is gate | up ``[2I, K]`` and the result ``act(gate) * up``
    ``[M, I]``. With a ``residual`` of the result's shape the result is added to it in place, rounded once.
    Otherwise it is of ``out_dtype``, by default that of x. x, weight, bias and the norm's weight share one
    floating dtype; rows of x may be strided, everything else is contiguous.
    """

    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None = None
    norm: NormWeight | None = None
    activation: str | None = None
    residual: torch.Tensor | None = None
    out_dtype: torch.dtype | None = None

    @property
    def kind(self) -> int:
        """The kernels' number of the activation, 0 without."""
        return ACTIVATION_NUMBERS[self.activation] if self.activation else 0

    @property
    def size(self) -> int:
        """Columns of the result."""
        return self.weight.shape[0] // (2 if self.activation else 1)

    def output(self) -> torch.Tensor:
        """Where the result goes: the residual, or new memory."""
        if self.residual is not None:
            return self.residual
        shape = (self.x.shape[0], self.size)
        return torch.empty(shape, dtype=self.out_dtype or self.x.dtype, device=self.x.device)

    def reference(self) -> torch.Tensor:
        """Compute the product in torch."""
        x = self.x.float()
        if self.norm is not None:
            x = F.rms_norm(x, x.shape[1:], self.norm.weight.float() + self.norm.offset, self.norm.eps)
        y = F.linear(x, self.weight.float(), None if self.bias is None else self.bias.float())
        if self.activation is not None:
            gate, up = y.chunk(2, dim=-1)
            approximate = "tanh" if self.activation == "gelu_tanh" else "none"
            y = (F.silu(gate) if self.activation == "silu" else F.gelu(gate, approximate=approximate)) * up
        if self.residual is not None:
            return self.residual.copy_(self.residual.float() + y)
        return y.to(self.out_dtype or self.x.dtype)

    def check(self) -> None:
        """Raise ValueError where shapes, dtypes or strides do not fit."""
        x, weight = self.x, self.weight
        if x.dim() != 2 or weight.dim() != 2 or x.shape[1] != weight.shape[1] or x.shape[1] == 0:
            raise ValueError(f"x {list(x.shape)} and weight {list(weight.shape)} are not [M, K] and [N, K].")
        if self.activation is not None and self.activation not in ACTIVATION_NUMBERS:
            raise ValueError(
                f"activation is {self.activation!r}; it must be one of {sorted(ACTIVATION_NUMBERS)}."
            )
        if self.activation is not None and weight.shape[0] % 2:
            raise ValueError(f"A gated product takes weights gate | up [2I, K], got {list(weight.shape)}.")
        if self.residual is not None and self.out_dtype not in (None, self.residual.dtype):
            raise ValueError(
                f"The residual is {self.residual.dtype}, so out_dtype cannot be {self.out_dtype}."
            )
        norm_weight = None if self.norm is None else self.norm.weight
        for name, tensor, shape in (
            ("bias", self.bias, (weight.shape[0],)),
            ("the norm's weight", norm_weight, (x.shape[1],)),
            ("residual", self.residual, (x.shape[0], self.size)),
        ):
            if tensor is not None and tensor.shape != shape:
                raise ValueError(f"{name} is {list(tensor.shape)}; it must be {list(shape)}.")
        dtypes = {t.dtype for t in (x, weight, self.bias, norm_weight) if t is not None}
        if len(dtypes) > 1 or not x.is_floating_point():
            raise ValueError(f"x, weights and bias are {sorted(map(str, dtypes))}; use one floating dtype.")
        others = [t for t in (weight, self.bias, norm_weight, self.residual) if t is not None]
        if x.stride(1) != 1 or not all(tensor.is_contiguous() for tensor in others):
            raise ValueError("Weights, biases and residuals must be contiguous, and so must each row of x.")
