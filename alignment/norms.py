"""RMS norm: forward by the engine's kernels, gradients in torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..kernels.norm import add_rms_norm, rms_norm


def normed(x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
    """``rms_norm`` of x ``[T, H]`` with weight ``[H]`` of its dtype."""
    return _Norm.apply(x, weight, eps, offset)  # type: ignore[no-untyped-call]


def added_and_normed(
    branch: Tensor, stream: Tensor, weight: Tensor, eps: float, offset: float
) -> tuple[Tensor, Tensor]:
    """``add_rms_norm`` of ``[T, H]`` tensors: (the sum, rounded; the norm of it). Changes neither."""
    return _AddedNorm.apply(branch, stream, weight, eps, offset)  # type: ignore[no-untyped-call]


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.eps, ctx.offset = eps, offset
        return rms_norm(x, weight.detach(), eps, offset)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        return (*_gradients(grad, x, weight, ctx.eps, ctx.offset), None, None)


class _AddedNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, branch: Tensor, stream: Tensor, weight: Tensor, eps: float, offset: float
    ) -> tuple[Tensor, Tensor]:
        total = stream.clone()
        result = add_rms_norm(branch, total, weight.detach(), eps, offset)
        ctx.save_for_backward(total, weight)
        ctx.eps, ctx.offset = eps, offset
        return total, result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, grad: Tensor) -> tuple[Tensor | None, ...]:
        total, weight = ctx.saved_tensors
        grad_x, grad_weight = _gradients(grad, total, weight, ctx.eps, ctx.offset)
        grad_x = grad_x + grad_total
        return grad_x, grad_x, grad_weight, None, None


def _gradients(grad: Tensor, x: Tensor, weight: Tensor, eps: float, offset: float) -> tuple[Tensor, Tensor]:
    """Of x and of the weight, in their dtype."""
    wide, grad = x.float(), grad.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    unit = wide * scale
    grad_weight = (grad * unit).sum(0)
    grad = grad * (weight.float() + offset)
    grad_x = scale * (grad - unit * (grad * unit).mean(-1, keepdim=True))
    return grad_x.to(x.dtype), grad_weight.to(weight.dtype)
