"""Buckets: many tensors in one buffer of bytes, so that few large things travel instead of many small."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from ..errors import InvalidParameterError, short
from .ipc import map_file

_ALIGNMENT = 256  # bytes; what kernels that copy like best, and a multiple of every dtype's size
Bucket = tuple[torch.Tensor, list[dict[str, Any]]]


def weights_buckets(
    named_tensors: Iterable[tuple[str, torch.Tensor]],
    size: int = 512 << 20,
    device: torch.device | str | None = None,
) -> Iterator[Bucket]:
    """Lay tensors into buckets of up to ``size`` bytes, one bucket at a time.

    Yields ``(buffer, entries)``: ``buffer`` [bytes] uint8, ``entries`` a ``{"name", "dtype", "shape",
    "offset"}`` of each tensor in it, made of strings and integers, to be sent along. This is what
    ``weight_update().add_bucket()`` takes and, with an :func:`ipc_handle` for the buffer, ``add_ipc()``.

    A buffer is overwritten as soon as the next is asked for; on a GPU by work in line on the current stream.
    Each tensor is needed only until the next is asked for, and one larger than ``size`` gets a buffer of its
    own size. ``device``: default that of the first tensor. In host memory the buffer can be shared with other
    processes. Raises InvalidParameterError.
    """
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise InvalidParameterError(f"size must be bytes above 0, got {short(size)}.")
    buffer = None
    entries: list[dict[str, Any]] = []
    used = 0
    for name, tensor in named_tensors:
        tensor = tensor.detach()
        offset = -(-used // _ALIGNMENT) * _ALIGNMENT
        if entries and offset + tensor.nbytes > size:
            assert buffer is not None
            yield buffer[:used], entries
            entries, offset = [], 0
        if buffer is None or offset + tensor.nbytes > len(buffer):
            buffer = None  # before another is made
            buffer = _new_buffer(max(size, tensor.nbytes), torch.device(device or tensor.device))
        used = offset + tensor.nbytes
        buffer[offset:used].view(tensor.dtype).view(tensor.shape).copy_(tensor)
        dtype = str(tensor.dtype).removeprefix("torch.")
        entries.append({"name": name, "dtype": dtype, "shape": list(tensor.shape), "offset": offset})
    if entries:
        assert buffer is not None
        yield buffer[:used], entries


def _new_buffer(size: int, device: torch.device) -> torch.Tensor:
    if device.type != "cpu" or not hasattr(os, "memfd_create"):
        return torch.empty(size, dtype=torch.uint8, device=device)
    file = os.memfd_create("rootlet-bucket")  # unlike /dev/shm it may be as large as memory in a container
    try:
        os.ftruncate(file, size)
        return map_file(file, size)
    finally:
        os.close(file)
