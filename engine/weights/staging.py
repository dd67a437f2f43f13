"""Where weights wait until all are there: in the KV pool, which is flushed anyway, or in host memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

_ALIGNMENT = 256  # bytes; what kernels that copy like best


class Stage(Protocol):
    """Keeps copies of tensors that their owner will overwrite."""

    def put(self, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """A copy of ``tensor`` in ``dtype``; copies between devices are in line on the current stream."""

    def clear(self) -> None:
        """Let go of the copies."""


class HostStage:
    """In ordinary memory of the host, a tensor at a time."""

    def put(self, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Waits for the values."""
        copy = torch.empty(tensor.shape, dtype=dtype, device="cpu")
        return copy.copy_(tensor)

    def clear(self) -> None:
        """Nothing is held here."""


class PoolStage:
    """In the memory of a KV pool whose contents nobody needs any more; what does not fit goes to the host."""

    def __init__(self, pool: Sequence[torch.Tensor]) -> None:
        self._free = [part.view(-1).view(torch.uint8) for part in pool]
        self._used: list[torch.Tensor] = []
        self._host = HostStage()

    def put(self, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Waits only for values that come from the host."""
        nbytes = tensor.numel() * dtype.itemsize
        memory = self._take(nbytes)
        if memory is None:
            return self._host.put(tensor, dtype)
        copy = memory.view(dtype).view(tensor.shape)
        return copy.copy_(tensor, non_blocking=tensor.device == copy.device)

    def clear(self) -> None:
        """Leave zeros, as there were: what a masked position reads must be a number."""
        for memory in self._used:
            memory.zero_()
        self._used = []

    def _take(self, nbytes: int) -> torch.Tensor | None:
        size = -(-nbytes // _ALIGNMENT) * _ALIGNMENT
        for index, part in enumerate(self._free):
            if size <= len(part):
                taken, self._free[index] = part[:size], part[size:]
                self._used.append(taken)
                return taken[:nbytes]
        return None
