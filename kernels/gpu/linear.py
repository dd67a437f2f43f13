"""Which of our kernels takes a matrix product on the GPU, if any."""

from __future__ import annotations

import torch

from ..products import Product
from .gemm import gemm, gemm_config, invariant_config
from .gemv import gemv
from .norm import rms_norm

GEMV_ROWS = 4
"""Up to so many rows of x a product is one reading of the weight."""

_FUSED_NORM_WIDTH = 2048
"""Every program of gemv computes a fused norm anew; on wider rows that costs more than a launch."""


def run(
    product: Product, weight: torch.Tensor, *, pdl: bool, batch_invariant: bool = False
) -> torch.Tensor | None:
    """Return the product with ``weight`` ``[N, K]``, or None where cuBLAS is faster.

    ``batch_invariant``: a row's result depends, to the last bit, on that row alone; never None.
    """
    if batch_invariant:
        return _run_invariant(product, weight, pdl=pdl)
    (m, k), n = product.x.shape, product.width(len(weight))
    config = None
    if m > GEMV_ROWS:
        plain = product.x.dtype.itemsize > 2 or product.out_dtype is not None
        config = None if plain else gemm_config(m, n, k, gated=product.activation is not None)
        if config is None:
            return None
    if product.norm is not None and (config is not None or k > _FUSED_NORM_WIDTH):
        product = product._replace(x=rms_norm(product.x, *product.norm, pdl=pdl), norm=None)
    if config is None:
        return gemv(product, weight, pdl=pdl)
    return gemm(product, weight, config=config, pdl=pdl)


def _run_invariant(product: Product, weight: torch.Tensor, *, pdl: bool) -> torch.Tensor:
    """The same kernels at every number of rows."""
    if product.norm is not None:
        product = product._replace(x=rms_norm(product.x, *product.norm, pdl=pdl), norm=None)
    x = product.x
    config = invariant_config(len(x), gated=product.activation is not None, itemsize=x.dtype.itemsize)
    return gemm(product, weight, config=config, pdl=pdl)
