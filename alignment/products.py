"""Matrix products: forward by the engine's deterministic kernels, gradients in torch.

The weights of a training step are plain ``[N, K]`` tensors that the next step changes, so they are put into
the layout of the kernels at every use: merged, cast to the dtype of the engine, on a CPU packed into panels.
That reads and writes each weight once, which is little beside a product of hundreds of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..kernels.activation import gated_activation
from ..kernels.linear import linear, linear_add
from ..kernels.matrices.interface import Matrix
from ..kernels.matrices.packing import pack_weight
from ..kernels.matrices.panels import PanelMatrix


class Weights(NamedTuple):
    """A linear layer: rows of several tensors ``[N_i, K]`` as one matrix, with their biases."""

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...] = ()

    def packed(self, dtype: torch.dtype) -> Packed:
        """The matrix and bias as a deterministic engine of that dtype holds them."""
        matrix = pack_weight(merged(self.weights, dtype), batch_invariant=True)
        return Packed(matrix, merged(self.biases, dtype) if self.biases else None)


class Packed(NamedTuple):
    """What the kernels multiply by."""

    matrix: Matrix
    bias: Tensor | None


def merged(tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Rows one under another, rounded once to ``dtype``; contiguous, without gradients."""
    rows = [tensor.detach().to(dtype) for tensor in tensors]
    return rows[0].contiguous() if len(rows) == 1 else torch.cat(rows)


def product(x: Tensor, layer: Weights, out_dtype: torch.dtype | None = None) -> Tensor:
    """``x @ W.T + bias`` ``[T, N]`` for x ``[T, K]``, in ``out_dtype``, by default that of x."""
    return _apply(x, None, layer, layer.packed(x.dtype), None, out_dtype)


def gated_product(x: Tensor, layer: Weights, activation: str) -> Tensor:
    """``act(gate) * up`` ``[T, I]`` of the product, whose rows are gate | up.

    Where one kernel does both, the product is taken once more for the gradients; panels know none of it.
    """
    packed = layer.packed(x.dtype)
    if isinstance(packed.matrix, PanelMatrix):
        gate_up = _apply(x, None, layer, packed, None, None)
        return _Gated.apply(gate_up, activation)  # type: ignore[no-untyped-call]
    return _apply(x, None, layer, packed, activation, None)


def product_into(x: Tensor, layer: Weights, stream: Tensor) -> tuple[Tensor, Tensor | None]:
    """Add the product to ``stream`` ``[T, N]`` as the engine's residual stream does; (stream, branch).

    Where the kernel adds while it writes, that is the new stream and no branch; else the old one and a branch
    that what comes next has to add.
    """
    packed = layer.packed(x.dtype)
    if packed.matrix.adds_in_product(x):
        return _apply(x, stream, layer, packed, None, None), None
    return stream, _apply(x, None, layer, packed, None, None)


def _apply(
    x: Tensor,
    stream: Tensor | None,
    layer: Weights,
    packed: Packed,
    activation: str | None,
    out_dtype: torch.dtype | None,
) -> Tensor:
    parameters = (*layer.weights, *layer.biases)
    return _Product.apply(x, stream, packed, activation, out_dtype, len(layer.weights), *parameters)  # type: ignore[no-untyped-call]


class _Product(torch.autograd.Function):
    """``parameters``: the weights, then the biases; ``packed`` is made of them, and not kept."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        stream: Tensor | None,
        packed: Packed,
        activation: str | None,
        out_dtype: torch.dtype | None,
        num_weights: int,
        *parameters: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(x, *parameters)
        ctx.activation, ctx.num_weights = activation, num_weights
        if stream is None:
            return linear(x, packed.matrix, packed.bias, out_dtype, activation=activation)
        total = stream.clone()
        linear_add(x, packed.matrix, packed.bias, total)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *parameters = ctx.saved_tensors
        weights, biases = parameters[: ctx.num_weights], parameters[ctx.num_weights :]
        weight = merged(weights, x.dtype)
        grad_stream = grad if ctx.needs_input_grad[1] else None
        if ctx.activation is not None:
            bias = merged(biases, x.dtype) if biases else None
            grad = _ungated(F.linear(x, weight, bias), grad, ctx.activation)
        grad = grad.to(x.dtype)
        grad_x = grad @ weight if ctx.needs_input_grad[0] else None
        return (
            *(grad_x, grad_stream, None, None, None, None),
            *parameter_gradients(grad, x, weights, biases, ctx.needs_input_grad[6:]),
        )


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor, activation: str) -> Tensor:
        ctx.save_for_backward(gate_up)
        ctx.activation = activation
        return gated_activation(gate_up, activation)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (gate_up,) = ctx.saved_tensors
        return _ungated(gate_up, grad, ctx.activation).to(gate_up.dtype), None


def parameter_gradients(
    grad: Tensor, x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], needed: Sequence[bool]
) -> list[Tensor | None]:
    """Of each weight and bias, in its own dtype, where ``needed``, for x ``[T, K]`` and grad ``[T, N]``."""
    rows = [len(weight) for weight in weights]
    columns = grad.split(rows, dim=1)
    results: list[Tensor | None] = []
    for part, tensor, wanted in zip(columns, weights, needed[: len(weights)]):
        results.append((part.t() @ x).to(tensor.dtype) if wanted else None)
    for part, tensor, wanted in zip(columns, biases, needed[len(weights) :]):
        results.append(part.float().sum(0).to(tensor.dtype) if wanted else None)
    return results


def _ungated(gate_up: Tensor, grad: Tensor, activation: str) -> Tensor:
    """The gradient of gate | up ``[T, 2I]`` from that of ``act(gate) * up`` ``[T, I]``, in fp32."""
    with torch.enable_grad():
        wide = gate_up.detach().float().requires_grad_()
        gate, up = wide.chunk(2, dim=-1)
        if activation == "silu":
            result = F.silu(gate) * up
        else:
            result = F.gelu(gate, approximate="tanh" if activation == "gelu_tanh" else "none") * up
        (wide_grad,) = torch.autograd.grad(result, wide, grad.float())
    return wide_grad
