"""Linear layers: ``y = x @ W.T + bias`` with a matrix W of any format (``matrices/``).

Inference only: nothing here records gradients.
"""

from __future__ import annotations

import torch

from .matrices.dense import multiply_widened
from .matrices.interface import Matrix
from .norm import NormWeight
from .products import Product


def linear(
    x: torch.Tensor,
    weight: Matrix,
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
    if norm is None and activation is None:
        return weight.multiply(x, bias, out_dtype)
    return weight.product(Product(x, bias, norm, activation, None, out_dtype))


def linear_add(x: torch.Tensor, weight: Matrix, bias: torch.Tensor | None, residual: torch.Tensor) -> None:
    """Add :func:`linear` of x to residual ``[T, N]`` in place.

    Where the matrix does not add in its product, adding is a pass of its own: better take the product then,
    and add it with what comes next.
    """
    weight.product(Product(x, bias, residual=residual))


def linear_reference(
    x: torch.Tensor,
    weight: Matrix,
    bias: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Compute :func:`linear` in torch: all operands widened to fp32, the result rounded once."""
    return multiply_widened(x, weight.dense(), bias, out_dtype)
