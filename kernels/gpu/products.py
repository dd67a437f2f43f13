"""What the kernels of products call an activation.

:func:`gemv` reads a matrix for a few rows of x, :func:`gemm` multiplies tens to hundreds; both take a
:class:`~rootlet.kernels.products.Product` and a dense matrix, and are checked against its ``reference``.
"""

from __future__ import annotations

from ..products import Product
from .activation import GELU, GELU_TANH, SILU

_NUMBERS = {"silu": SILU.value, "gelu": GELU.value, "gelu_tanh": GELU_TANH.value}


def activation_number(product: Product) -> int:
    """The kernels' number of the activation, 0 without."""
    return _NUMBERS[product.activation] if product.activation else 0
