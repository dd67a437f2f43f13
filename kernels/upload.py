"""Several small arrays sent to a device in one copy that nobody waits for."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

# Triton compiles a kernel once more for pointers that are not multiples of 16 bytes.
_ALIGN = 4  # int32 elements


def side_by_side(sizes: Iterable[int]) -> tuple[list[slice], int]:
    """Where int32 arrays of these sizes lie in one, each aligned for Triton, and how long that one is."""
    parts, end = [], 0
    for size in sizes:
        parts.append(slice(end, end + size))
        end += -(-size // _ALIGN) * _ALIGN
    return parts, end


def upload(device: torch.device, *arrays: np.ndarray) -> list[torch.Tensor]:
    """Send int32 arrays to the device in one copy that the host does not wait for."""
    parts, size = side_by_side(array.size for array in arrays)
    host = torch.empty(size, dtype=torch.int32, pin_memory=device.type == "cuda", device="cpu")
    view = host.numpy()
    for array, part in zip(arrays, parts):
        view[part] = array.reshape(-1)
    sent = host.to(device, non_blocking=True)
    return [sent[part].view(array.shape) for array, part in zip(arrays, parts)]
