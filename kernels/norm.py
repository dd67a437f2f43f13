"""Root-mean-square normalisation (Zhang & Sennrich 2019, arXiv:1910.07467), alone or after a residual add."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import NamedTuple

import torch

from .device import has_pdl, on_gpu
from .native import element_type, load

_C = load()


class NormWeight(NamedTuple):
    """A norm still to be applied: what :func:`rms_norm` takes beside x."""

    weight: torch.Tensor  # [H]
    eps: float
    offset: float = 0.0  # added to the weight, in fp32


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float = 0.0) -> torch.Tensor:
    """Return ``x / sqrt(mean(x^2) + eps) * (offset + weight)`` over the last dimension.

    x ``[T, H]`` and weight ``[H]`` share one dtype; the result is ``[T, H]`` of that dtype, rounded
    once from fp32. Weights around zero with an offset of 1 (Gemma) keep bits that their sum would lose.
    Raises ValueError if the sizes differ.
    """
    if on_gpu(x):
        return _gpu().rms_norm(x, weight, eps, offset, pdl=has_pdl(x.device))
    if _C is None or (kind := element_type(x, weight)) is None:
        return rms_norm_reference(x, weight, eps, offset)
    return _run(_C, x, None, weight, eps, offset, kind)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, offset: float = 0.0
) -> torch.Tensor:
    """Add x to residual in place and return ``rms_norm(residual, weight, eps, offset)``.

    x and residual ``[T, H]``, weight ``[H]``, one dtype. The sum is rounded to that dtype before it
    is normalised, so that the result is a function of the residual stream alone. Raises ValueError
    if the sizes differ.
    """
    if on_gpu(x):
        return _gpu().add_rms_norm(x, residual, weight, eps, offset, pdl=has_pdl(x.device))
    kind = element_type(x, residual, weight)
    if _C is None or kind is None or not residual.is_contiguous():
        return add_rms_norm_reference(x, residual, weight, eps, offset)
    return _run(_C, x, residual, weight, eps, offset, kind)


def rms_norm_reference(
    x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float = 0.0
) -> torch.Tensor:
    """Compute :func:`rms_norm` in torch."""
    _check_sizes(x, None, weight)
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return (wide * scale * (weight.float() + offset)).to(x.dtype)


def add_rms_norm_reference(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, offset: float = 0.0
) -> torch.Tensor:
    """Compute :func:`add_rms_norm` in torch."""
    _check_sizes(x, residual, weight)
    residual += x
    return rms_norm_reference(residual, weight, eps, offset)


@functools.cache
def _gpu() -> ModuleType:
    from .gpu import norm

    return norm


def _run(
    kernels: ModuleType,
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    eps: float,
    offset: float,
    kind: int,
) -> torch.Tensor:
    _check_sizes(x, residual, weight)
    x, weight = x.contiguous(), weight.contiguous()
    out = torch.empty_like(x)
    add_to = 0 if residual is None else residual.data_ptr()
    rows, size = x.shape
    kernels.rms_norm(out.data_ptr(), x.data_ptr(), add_to, weight.data_ptr(), rows, size, eps, offset, kind)
    return out


def _check_sizes(x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor) -> None:
    if x.shape[1:] != weight.shape or (residual is not None and residual.shape != x.shape):
        added = "" if residual is None else f", residual {list(residual.shape)}"
        raise ValueError(
            f"RMS norm got x {list(x.shape)}{added}, weight {list(weight.shape)};"
            " it takes x [T, H], a residual of x's shape and weight [H]."
        )
