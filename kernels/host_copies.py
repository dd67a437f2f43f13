"""Copies from host memory to a device that run beside the computation."""

from __future__ import annotations

import mmap
import weakref
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..errors import ConfigError


class HostCopies(Protocol):
    """Copies to one device, in a few *slots*, each of which holds one copy at a time."""

    def host_memory(self, num_bytes: int) -> Tensor:
        """uint8 ``[num_bytes]`` that the device can read by itself; lives as long as this object."""

    def start(self, slot: int, target: Tensor, source: Tensor) -> None:
        """Copy once all is done that the current stream was given so far; what follows does not wait."""

    def wait(self, slot: int) -> None:
        """What the current stream is given from here on sees what was copied in ``slot``."""


def host_copies(device: torch.device, num_slots: int) -> HostCopies:
    """Copies to ``device``."""
    return StreamCopies(device, num_slots) if device.type == "cuda" else InlineCopies()


class InlineCopies:
    """Copies of a device that works in order, as the CPU does: made at once."""

    def host_memory(self, num_bytes: int) -> Tensor:
        """Memory of its own pages."""
        return _mapped(num_bytes)

    def start(self, slot: int, target: Tensor, source: Tensor) -> None:  # noqa: ARG002
        """Copy now."""
        target.copy_(source)

    def wait(self, slot: int) -> None:
        """The copy is made."""


class StreamCopies:
    """Copies on a CUDA stream of their own, forked from the current stream and joined by events.

    Every event is recorded and waited for between a start and its wait, so both may be part of a CUDA graph.
    The host memory is locked in place page by page, to the byte; torch's own pinned memory is rounded up to a
    power of two and never given back.
    """

    def __init__(self, device: torch.device, num_slots: int) -> None:
        self._device = device
        # Streams of another priority come from another pool of torch's: never the one that computes.
        self._stream = torch.cuda.Stream(device, priority=-1)
        self._arrived = [torch.cuda.Event() for _ in range(num_slots)]
        self._locked: list[Tensor] = []
        released = weakref.finalize(self, _unlock, device, self._stream, self._locked)
        released.atexit = False  # the process ends and takes its memory along

    def host_memory(self, num_bytes: int) -> Tensor:
        """Page-locked memory. Raises ConfigError if the system locks no more."""
        memory = _mapped(num_bytes)
        with torch.cuda.device(self._device):
            result = torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), num_bytes, 0)
        if int(result) != 0:
            raise ConfigError(
                f"The system refuses to lock {num_bytes} bytes of host memory for {self._device} (CUDA error "
                f"{int(result)}), after {sum(m.nbytes for m in self._locked)}. Free some, or keep more on "
                "the GPU: a lower cpu_offload_gb."
            )
        self._locked.append(memory)
        return memory

    def start(self, slot: int, target: Tensor, source: Tensor) -> None:
        """Fork from the current stream and copy."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
            self._arrived[slot].record(self._stream)

    def wait(self, slot: int) -> None:
        """Join the copy of ``slot``; a later one in another slot goes on."""
        torch.cuda.current_stream(self._device).wait_event(self._arrived[slot])


def _mapped(num_bytes: int) -> Tensor:
    """Zeroed pages that hold nothing else, whatever their number."""
    if not hasattr(mmap, "MADV_DONTFORK"):
        return torch.frombuffer(mmap.mmap(-1, num_bytes), dtype=torch.uint8)
    pages = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # after a fork whoever writes first would move to new pages, which the device knows nothing of
    pages.madvise(mmap.MADV_DONTFORK)
    return torch.frombuffer(pages, dtype=torch.uint8)


def _unlock(device: torch.device, stream: torch.cuda.Stream, locked: Sequence[Tensor]) -> None:
    """Give the pages back to the system, once no copy reads them."""
    stream.synchronize()
    with torch.cuda.device(device):
        for memory in locked:
            torch.cuda.cudart().cudaHostUnregister(memory.data_ptr())
