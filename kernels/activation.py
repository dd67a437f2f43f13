"""Gated activations of the feed-forward block: ``act(gate) * up``."""

from __future__ import annotations

import functools
from types import ModuleType

import torch
import torch.nn.functional as F

from .device import has_pdl, on_gpu
from .native import element_type, load

_C = load()

ACTIVATIONS = ("silu", "gelu", "gelu_tanh")
"""Names that :func:`gated_activation` takes; gelu is the one by erf."""

# numbers of csrc/activation.c
_SILU = 0
_GELU = {"none": 1, "tanh": 2}


def gated_activation(gate_up: torch.Tensor, name: str) -> torch.Tensor:
    """Return ``act(gate) * up`` for gate_up ``[T, 2I]`` and one of :data:`ACTIVATIONS`."""
    if name == "silu":
        return silu_and_mul(gate_up)
    return gelu_and_mul(gate_up, {"gelu": "none", "gelu_tanh": "tanh"}[name])


def silu_and_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """Return ``silu(gate) * up`` for gate_up ``[T, 2I]`` = gate ``[T, I]`` | up ``[T, I]``.

    The result is ``[T, I]`` in gate_up's dtype, rounded once from fp32 (SwiGLU, arXiv:2002.05202).
    Raises ValueError if gate_up is not a matrix of even width.
    """
    if on_gpu(gate_up):
        return _gpu().silu_and_mul(gate_up, pdl=has_pdl(gate_up.device))
    if _C is None or (kind := element_type(gate_up)) is None:
        return silu_and_mul_reference(gate_up)
    return _run(_C, gate_up, _SILU, kind)


def gelu_and_mul(gate_up: torch.Tensor, approximate: str) -> torch.Tensor:
    """Return ``gelu(gate) * up`` for gate_up ``[T, 2I]`` = gate ``[T, I]`` | up ``[T, I]``.

    approximate is ``"none"`` (erf) or ``"tanh"`` (arXiv:1606.08415); anything else is a ValueError,
    as is a gate_up that is not a matrix of even width. The result is ``[T, I]`` in gate_up's dtype,
    rounded once from fp32.
    """
    if on_gpu(gate_up):
        return _gpu().gelu_and_mul(gate_up, approximate, pdl=has_pdl(gate_up.device))
    kind = element_type(gate_up)
    if _C is None or kind is None or approximate not in _GELU:
        return gelu_and_mul_reference(gate_up, approximate)
    return _run(_C, gate_up, _GELU[approximate], kind)


def silu_and_mul_reference(gate_up: torch.Tensor) -> torch.Tensor:
    """Compute :func:`silu_and_mul` in torch."""
    _half_width(gate_up)
    gate, up = gate_up.float().chunk(2, dim=-1)
    return (F.silu(gate) * up).to(gate_up.dtype)


def gelu_and_mul_reference(gate_up: torch.Tensor, approximate: str) -> torch.Tensor:
    """Compute :func:`gelu_and_mul` in torch."""
    if approximate not in _GELU:
        raise ValueError(f'approximate is {approximate!r}; it must be "none" or "tanh".')
    _half_width(gate_up)
    gate, up = gate_up.float().chunk(2, dim=-1)
    return (F.gelu(gate, approximate=approximate) * up).to(gate_up.dtype)


@functools.cache
def _gpu() -> ModuleType:
    from .gpu import activation

    return activation


def _run(kernels: ModuleType, gate_up: torch.Tensor, function: int, kind: int) -> torch.Tensor:
    size = _half_width(gate_up)
    rows = gate_up.shape[0]
    gate_up = gate_up.contiguous()
    out = gate_up.new_empty((rows, size))
    kernels.gated_activation(out.data_ptr(), gate_up.data_ptr(), rows, size, function, kind)
    return out


def _half_width(gate_up: torch.Tensor) -> int:
    shape = gate_up.shape
    if len(shape) != 2 or shape[1] % 2:
        raise ValueError(f"A gated activation takes gate | up [T, 2I], got {list(shape)}.")
    return shape[1] // 2
