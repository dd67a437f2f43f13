"""Rotation and attention: forward by the engine's kernels over pages, gradients by torch's own attention."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.utils.rnn import pad_sequence

from ..kernels.attention import AttentionPlan
from ..kernels.rotary import rotary_and_store
from ..kernels.scoring import Scoring
from .sequences import PAGE_SIZE, Sequences


class Heads(NamedTuple):
    """Numbers of heads, and the size of one."""

    q: int
    kv: int
    dim: int


class AttentionStep(NamedTuple):
    """What the attention of all layers has in common; ``cos_sin`` ``[max_pos, rotary_dim]`` fp32."""

    sequences: Sequences
    plan: AttentionPlan
    cos_sin: Tensor
    heads: Heads


def attend(qkv: Tensor, step: AttentionStep, scoring: Scoring) -> Tensor:
    """Causal attention ``[T, Hq * D]`` within each sequence, of q | k | v ``[T, (Hq + 2 Hkv) * D]``."""
    return _Attention.apply(qkv, step, scoring)  # type: ignore[no-untyped-call]


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, step: AttentionStep, scoring: Scoring) -> Tensor:
        ctx.save_for_backward(qkv)
        ctx.step, ctx.scoring = step, scoring
        sequences, heads = step.sequences, step.heads
        # zeros: a masked key weighs nothing, and nothing times a stray infinity would be NaN
        shape = (2, sequences.num_pages, PAGE_SIZE, heads.kv, heads.dim)
        k, v = torch.zeros(shape, dtype=qkv.dtype, device=qkv.device)
        q = rotary_and_store(qkv, step.cos_sin, sequences.positions, sequences.kv_slots, k, v, heads.q)
        return step.plan.attend(q, k, v, scoring).flatten(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (qkv,) = ctx.saved_tensors
        with torch.enable_grad():
            qkv = qkv.detach().requires_grad_()
            result = attend_by_torch(qkv, ctx.step, ctx.scoring)
            (grad_qkv,) = torch.autograd.grad(result, qkv, grad)
        return grad_qkv, None, None


def attend_by_torch(qkv: Tensor, step: AttentionStep, scoring: Scoring) -> Tensor:
    """:func:`attend` in torch, up to rounding: sequences as rows, padded behind, where causality hides it."""
    heads, lengths = step.heads, step.sequences.lengths
    q, k, v = qkv.unflatten(1, (-1, heads.dim)).split((heads.q, heads.kv, heads.kv), dim=1)
    cos, sin = step.cos_sin[step.sequences.positions].unsqueeze(1).chunk(2, dim=-1)
    q, k = _rotated(q, cos, sin), _rotated(k, cos, sin)
    q, k, v = (pad_sequence(x.split(lengths), batch_first=True).transpose(1, 2) for x in (q, k, v))
    # repeated: torch has kernels for shared heads, but not for every dtype, nor with a mask
    k, v = (x.repeat_interleave(heads.q // heads.kv, dim=1) for x in (k, v))
    mask = None
    if scoring.window is not None:
        distance = torch.arange(max(lengths), dtype=torch.int64, device=qkv.device)
        distance = distance[:, None] - distance
        mask = (distance >= 0) & (distance < scoring.window)
    out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, scale=scoring.scale)
    out = out.transpose(1, 2).flatten(2)
    return torch.cat([row[:length] for row, length in zip(out, lengths)])


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x ``[T, heads, D]`` rotated in fp32 by cos and sin ``[T, 1, rotary_dim / 2]``, rounded once."""
    half = cos.shape[-1]
    first, second, rest = x.float().split((half, half, x.shape[-1] - 2 * half), dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1).to(x.dtype)
