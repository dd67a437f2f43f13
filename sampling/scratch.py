"""Work buffers that live from step to step.

A [64, 150000] tensor freshly allocated on a CPU is paid for page by page on first touch, which costs
more than most of the passes over it.
"""

from __future__ import annotations

import torch


class Scratch:
    """Named, growing buffers on one device. A buffer's content is undefined until written.

    Args:
        device: where the buffers live.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers: dict[tuple[str, torch.dtype], torch.Tensor] = {}

    def get(self, name: str, shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """A contiguous tensor of ``shape``; overlaps every earlier one of the same name and dtype."""
        numel = shape[0] * shape[1]
        buffer = self._buffers.get((name, dtype))
        if buffer is None or buffer.numel() < numel:
            self._buffers.pop((name, dtype), None)  # let go of the old one before asking for more
            buffer = torch.empty(numel, dtype=dtype, device=self._device)
            self._buffers[name, dtype] = buffer
        return buffer[:numel].view(shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(buffer.nbytes for buffer in self._buffers.values())

    def clear(self) -> None:
        """Let them go."""
        self._buffers.clear()
