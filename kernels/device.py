"""What belongs to a GPU as a whole: its abilities, the streams of engines, and who may record a graph.

This is the one place with state of the process, because what it tames is: torch keeps cuBLAS workspaces
(32 MiB each) for every pair of thread handle and stream that ever multiplied, and recorded graphs read
them, so they can never be freed. Engines that come and go therefore take over each other's streams.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator

import torch


def on_gpu(tensor: torch.Tensor) -> bool:
    """Whether the GPU's kernels compute on this tensor; all operations ask here, some ten times a layer.

    Tensors without memory (device ``meta``) stand for a GPU's, so that a step of them shows its kernels.
    """
    return not tensor.is_cpu


def capability(device: torch.device) -> tuple[int, int]:
    """A GPU's compute capability, (0, 0) of a CPU; ``meta`` stands for the current GPU."""
    if device.type == "meta" and torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
    return _capability(device)


@functools.cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)


def has_pdl(device: torch.device) -> bool:
    """Whether a kernel can start before the one ahead ends: programmatic dependent launch, Hopper on."""
    return capability(device) >= (9, 0)


class StreamPool:
    """Side streams that nobody uses at the moment, by device. Any thread may call."""

    def __init__(self) -> None:
        self._idle: dict[torch.device, list[torch.cuda.Stream]] = defaultdict(list)
        self._lock = threading.Lock()

    def borrow(self, device: torch.device) -> torch.cuda.Stream:
        """A stream for the caller alone, which has seen all work of the device's default stream."""
        with self._lock:
            idle = self._idle[device]
            stream = idle.pop() if idle else torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.default_stream(device))
        return stream

    def give_back(self, stream: torch.cuda.Stream, device: torch.device) -> None:
        """Leave a stream to the next borrower, after waiting for what runs on it."""
        stream.synchronize()
        with self._lock:
            self._idle[device].append(stream)


STREAMS = StreamPool()

RECORDING = threading.Lock()
"""Held while a graph is recorded or memory is returned: torch allows neither beside a recording."""


@contextlib.contextmanager
def at_rest(device: torch.device) -> Iterator[None]:
    """A block that begins when all work on a GPU is done and in which no engine records: for unmapping."""
    with RECORDING, torch.cuda.device(device):
        torch.cuda.synchronize()
        yield


def when_at_rest(device: torch.device, action: Callable[[], None]) -> None:
    """``action()`` :func:`at_rest`, now or soon: for finalizers, which strike at any moment.

    The thread they strike may be the one that records, so it is not to wait: another one does.
    """

    def run() -> None:
        with at_rest(device):
            action()

    if RECORDING.locked():
        threading.Thread(target=run, name="rootlet-unmap", daemon=True).start()
    else:
        run()


def give_back_memory(device: torch.device) -> None:
    """Return to the driver what torch has cached on ``device`` without using it; a no-op on the CPU.

    While the host program records a graph of its own torch refuses; the memory then stays in torch's cache.
    """
    if device.type == "cuda":
        with at_rest(device):
            empty_cache()


def empty_cache() -> None:
    """:func:`give_back_memory` of the current device, inside a block of :func:`at_rest`."""
    try:
        torch.cuda.empty_cache()
    except RuntimeError as error:
        if "captures_underway" not in str(error):
            raise
