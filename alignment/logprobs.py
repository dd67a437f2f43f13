"""Log-probabilities of given tokens, as a deterministic engine reports them of the tokens it samples.

The engine takes them of the fp32 logits: on a CPU by torch's log_softmax of logits / temperature, on a GPU
from sums of fixed-point probabilities (``kernels/gpu/sampling.py``). The same operations stand here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..kernels.device import on_gpu
from ..kernels.linear import linear
from ..kernels.matrices.packing import pack_weight
from .products import Packed, Weights, merged

_ROWS = 256  # whose logits exist at once
_LOWEST = torch.finfo(torch.float32).min


def logprobs_of(hidden: Tensor, head: Weights, targets: Tensor, temperature: float) -> Tensor:
    """Log-probabilities ``[R]`` fp32 of ``targets`` ``[R]`` int64 after the states ``hidden`` ``[R, H]``."""
    packed = head.packed(hidden.dtype)
    parameters = (*head.weights, *head.biases)
    return _LogProbs.apply(hidden, targets, temperature, packed, len(head.weights), *parameters)  # type: ignore[no-untyped-call]


@torch.no_grad()
def score(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Log-probabilities ``[R]`` fp32 of ``targets`` ``[R]`` int64 by logits ``[R, V]`` fp32."""
    heat = torch.full((len(logits), 1), temperature, dtype=torch.float32, device=logits.device)
    if on_gpu(logits):
        return _score_on_gpu(logits, targets, heat)
    chosen = torch.log_softmax(torch.div(logits, heat), 1).gather(1, targets.unsqueeze(1))
    return chosen.clamp_(min=_LOWEST).squeeze(1)


def _score_on_gpu(logits: Tensor, targets: Tensor, heat: Tensor) -> Tensor:
    from ..kernels.gpu.sample_logprobs import score_tokens
    from ..kernels.gpu.sampling import GREEDY_WITH_TOTAL, draw_rows

    zeros = torch.zeros_like(targets)
    kinds = torch.full((len(targets),), GREEDY_WITH_TOTAL, dtype=torch.int32, device=logits.device)
    found = draw_rows(logits, heat, kinds, zeros, zeros)
    chosen, _ = score_tokens(logits, None, heat, found.highest, found.total, targets, None, None)
    return chosen


class _LogProbs(torch.autograd.Function):
    """The head and what follows, a few rows at a time, so that no ``[T, V]`` is ever kept."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        targets: Tensor,
        temperature: float,
        packed: Packed,
        num_weights: int,
        *parameters: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(hidden, targets, *parameters)
        ctx.temperature, ctx.num_weights = temperature, num_weights
        return torch.cat(
            [
                score(linear(rows, packed.matrix, packed.bias, torch.float32), wanted, temperature)
                for rows, wanted in zip(hidden.split(_ROWS), targets.split(_ROWS))
            ]
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, targets, *parameters = ctx.saved_tensors
        weights, biases = parameters[: ctx.num_weights], parameters[ctx.num_weights :]
        weight = merged(weights, hidden.dtype)
        bias = merged(biases, hidden.dtype) if biases else None
        plain = pack_weight(weight, in_panels=False)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        grad_bias = torch.zeros(len(weight), dtype=torch.float32, device=weight.device)
        for start in range(0, len(hidden), _ROWS):
            rows = slice(start, start + _ROWS)
            logits = linear(hidden[rows], plain, bias, torch.float32)
            wide = torch.softmax(logits.div_(ctx.temperature), 1)
            part = grad[rows].unsqueeze(1)
            wide.mul_(-part).scatter_add_(1, targets[rows].unsqueeze(1), part).div_(ctx.temperature)
            narrow = wide.to(hidden.dtype)
            torch.mm(narrow, weight, out=grad_hidden[rows])
            grad_weight += narrow.t() @ hidden[rows]
            grad_bias += wide.sum(0)
        counts = [len(w) for w in weights]
        return (
            *(grad_hidden, None, None, None, None),
            *(g.to(w.dtype) for g, w in zip(grad_weight.split(counts), weights)),
            *(g.to(b.dtype) for g, b in zip(grad_bias.split(counts), biases)),
        )
