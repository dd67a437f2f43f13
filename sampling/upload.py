"""Moving all tensors of a dataclass to a device at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch

_ALIGNMENT = 16  # bytes: what kernels load at once, and a multiple of every element size


def upload(batch: Any, device: torch.device) -> Any:
    """A copy of a dataclass whose tensors, at any depth, lie on ``device``: one transfer for all of them.

    They must be contiguous tensors on the CPU. The transfer is enqueued on the current stream; the host does
    not wait for it.
    """
    tensors = list(_tensors(batch))
    starts, size = [], 0
    for tensor in tensors:
        starts.append(size)
        size += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
    host = torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda", device="cpu")
    room = host.numpy()
    for start, tensor in zip(starts, tensors):
        room[start : start + tensor.nbytes] = tensor.numpy().reshape(-1).view(np.uint8)
    # torch keeps the pinned memory from being reused before the copy has read it
    there = host.to(device, non_blocking=True, copy=True)
    # one view for each dtype, one more for each tensor: a batch has some twenty
    typed = {tensor.dtype: there.view(tensor.dtype) for tensor in tensors}
    moved = iter(
        [
            typed[like.dtype].as_strided(like.shape, like.stride(), start // like.element_size())
            for start, like in zip(starts, tensors)
        ]
    )
    return _map_tensors(batch, lambda _: next(moved))


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))


def _map_tensors(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """``value`` with every tensor replaced, in the order of ``_tensors``."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if not is_dataclass(value) or isinstance(value, type):
        return value
    return replace(value, **{f.name: _map_tensors(getattr(value, f.name), change) for f in fields(value)})
