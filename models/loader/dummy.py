"""Random weights for a model of which only ``config.json`` is at hand (``load_format="dummy"``)."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping

import torch

from .checkpoint import Checkpoint, StoredTensor

_POOL_SIZE = 1_000_003
"""Values drawn per tensor; larger tensors repeat them. A prime, so that no two rows of a matrix are equal
at any usual row length; drawing billions of normal values would take most of a minute."""


def make_dummy(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, seed: int = 0) -> Checkpoint:
    """A checkpoint of small random values for tensors of these names and shapes, in ``dtype`` on the CPU.

    A tensor depends on its name, its shape and ``seed`` alone, not on the order or on the other names.
    Matrices have variance 1/columns, so that a layer keeps the size of its input and activations
    stay finite at any depth; the scales of norms are near 1, biases near 0.
    """
    sizes = {name: torch.Size(shape).numel() * dtype.itemsize for name, shape in shapes.items()}

    def stream() -> Iterator[StoredTensor]:
        for name, shape in shapes.items():
            yield StoredTensor(name, _random_tensor(name, torch.Size(shape), dtype, seed), sizes[name])

    return Checkpoint(stream(), sum(sizes.values()), dtype)


def _random_tensor(name: str, shape: torch.Size, dtype: torch.dtype, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}:{name}".encode()))
    count = shape.numel()
    pool = torch.empty(min(count, _POOL_SIZE)).normal_(generator=generator)
    if len(shape) > 1:
        pool *= shape[-1] ** -0.5
    else:
        pool = pool * 0.02 + (1.0 if name.endswith("weight") else 0.0)
    pool = pool.to(dtype)
    if count <= _POOL_SIZE:
        return pool.view(shape)
    values = torch.empty(count, dtype=dtype)
    for start in range(0, count, _POOL_SIZE):
        part = values[start : start + _POOL_SIZE]
        part.copy_(pool[: part.numel()])
    return values.view(shape)
