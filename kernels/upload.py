"""Several small arrays sent to a device in one copy that nobody waits for."""

from __future__ import annotations

import numpy as np
import torch

# Triton compiles a kernel once more for pointers that are not multiples of 16 bytes.
_ALIGN = 4  # int32 elements


def upload(device: torch.device, *arrays: np.ndarray) -> list[torch.Tensor]:
    """Send int32 arrays to the device in one copy that the host does not wait for."""
    ends, size = [], 0
    for array in arrays:
        ends.append((size, size + array.size))
        size += -(-array.size // _ALIGN) * _ALIGN
    host = torch.empty(size, dtype=torch.int32, pin_memory=device.type == "cuda", device="cpu")
    view = host.numpy()
    for array, (begin, end) in zip(arrays, ends):
        view[begin:end] = array.reshape(-1)
    sent = host.to(device, non_blocking=True)
    return [sent[begin:end].view(array.shape) for array, (begin, end) in zip(arrays, ends)]
