"""Random weights for a model of which only ``config.json`` is at hand (``load_format="dummy"``)."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping

import torch

from .checkpoint import Checkpoint, StoredTensor

_POOL_SIZE = 1_000_003
"""Values drawn in all; tensors repeat them from different places. A prime, so that no two rows of a matrix
are equal at any usual row length; drawing billions of normal values would take most of a minute."""


def make_dummy(
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype,
    dtypes: Mapping[str, torch.dtype] | None = None,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Checkpoint:
    """A checkpoint of small random values for tensors of these names and shapes, in ``dtype`` on ``device``.

    ``dtypes`` names the tensors that are of another type; integers are drawn from all that theirs has.

    A tensor depends on its name, its shape and ``seed``, not on the order, other names or the device.
    Matrices have variance 1/columns, so that a layer keeps the size of its input and activations
    stay finite at any depth; the scales of norms are near 1, biases near 0.
    """
    kinds = {name: (dtypes or {}).get(name, dtype) for name in shapes}
    sizes = {name: torch.Size(shape).numel() * kinds[name].itemsize for name, shape in shapes.items()}

    def stream() -> Iterator[StoredTensor]:
        generator = torch.Generator().manual_seed(seed)
        pool = (
            torch.empty(_POOL_SIZE, dtype=torch.float32, device="cpu").normal_(generator=generator).to(device)
        )
        for name, shape in shapes.items():
            yield StoredTensor(
                name, _random_tensor(pool, name, torch.Size(shape), kinds[name], seed), sizes[name]
            )

    return Checkpoint(stream(), sum(sizes.values()), dtype)


def _random_tensor(
    pool: torch.Tensor, name: str, shape: torch.Size, dtype: torch.dtype, seed: int
) -> torch.Tensor:
    values = pool.roll(zlib.crc32(f"{seed}:{name}".encode()) % _POOL_SIZE)
    if not dtype.is_floating_point:
        limits = torch.iinfo(dtype)
        values = (values * 2**16).long().remainder(limits.max - limits.min + 1) + limits.min
    elif len(shape) > 1:
        values *= shape[-1] ** -0.5
    else:
        values = values * 0.02 + (1.0 if name.endswith("weight") else 0.0)
    values = values.to(dtype)
    repeats = -(-shape.numel() // _POOL_SIZE)
    return values.repeat(repeats)[: shape.numel()].view(shape)
