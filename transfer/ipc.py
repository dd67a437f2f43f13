"""Handles: names of a buffer in one process, by which another process of the same machine reads it.

A handle of ours is a dict of strings, numbers and bytes: pickle, MessagePack or, with the bytes encoded, JSON
can carry it, and reading it runs nobody's code.

    CUDA: {"device": "cuda", "uuid", "pid", "nbytes", "offset", "memory", "memory_nbytes", "memory_offset",
           "counter", "counter_offset", "event", "needs_event"}   from cudaIpcGetMemHandle, by torch
    CPU:  {"device": "cpu", "pid", "fd", "nbytes", "offset"}       a file descriptor that the process has open
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch.multiprocessing import reductions

from ..errors import WeightsError

CUDA_FIELDS = (  # in the order of rebuild_cuda_tensor's last arguments, and their types
    ("memory", bytes),
    ("memory_nbytes", int),
    ("memory_offset", int),
    ("counter", bytes),
    ("counter_offset", int),
    ("event", bytes),
    ("needs_event", bool),
)


def ipc_handle(buffer: torch.Tensor) -> dict[str, Any]:
    """A handle of ``buffer`` [bytes] uint8 for an engine in another process on this machine.

    The buffer must stay, unchanged, until the engine has read it. What is in line on the current stream is
    waited for by whoever opens the handle. On a GPU a handle is opened once: make another for each bucket. A
    buffer of host memory that is not shared yet is moved to shared memory, in place (Linux only).

    Raises WeightsError for what cannot be shared.
    """
    if buffer.dtype is not torch.uint8 or buffer.dim() != 1 or not buffer.is_contiguous() or not len(buffer):
        raise WeightsError(
            f"A bucket is one contiguous tensor [bytes] of uint8, got {buffer.dtype} {list(buffer.shape)}:"
            " rootlet.weights_buckets() makes them."
        )
    handle = {"pid": os.getpid(), "nbytes": len(buffer), "offset": buffer.storage_offset()}
    try:
        if buffer.is_cuda:
            arguments = reductions.reduce_tensor(buffer)[1]
            fields = zip((name for name, _ in CUDA_FIELDS), (*arguments[7:10], *arguments[11:]))
            uuid = torch.cuda.get_device_properties(buffer.device).uuid
            return {"device": "cuda", "uuid": str(uuid), **handle, **dict(fields)}
        fd, _ = buffer.untyped_storage()._share_fd_cpu_()
    except RuntimeError as error:
        raise WeightsError(
            f"The buffer on {buffer.device} cannot be shared with another process: {error}. On a GPU it must"
            " be memory of torch's own allocator, without expandable_segments where the kernel or the"
            " container does not allow that."
        ) from error
    return {"device": "cpu", **handle, "fd": fd}


def map_file(file: int, nbytes: int) -> torch.Tensor:
    """The first bytes of an open file, shared with all who map it; the caller may close ``file``."""
    storage: torch.UntypedStorage = torch.UntypedStorage._new_shared_fd_cpu(file, nbytes)  # type: ignore[attr-defined]
    return torch.empty(0, dtype=torch.uint8, device="cpu").set_(storage)
