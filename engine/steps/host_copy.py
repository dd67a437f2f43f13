"""Tensors on their way from the device to the host."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ...errors import RootletError


class HostCopy:
    """Copies tensors to the host without making anybody wait: begun at launch, read at commit.

    A plain ``tensor.tolist()`` at commit would queue behind the step launched since, and the overlap of
    host and device would be gone.

    ``errors``: what went wrong already while the tensors were made, by row.
    """

    def __init__(
        self, tensors: dict[str, torch.Tensor | None], errors: Mapping[int, RootletError] | None = None
    ) -> None:
        self.errors = errors or {}
        self._event: torch.cuda.Event | None = None
        self._tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        if any(tensor.is_cuda for tensor in self._tensors.values()):
            self._tensors = {name: _to_pinned(tensor) for name, tensor in self._tensors.items()}
            self._event = torch.cuda.Event()
            self._event.record()

    def __contains__(self, name: str) -> bool:
        """Whether there was a tensor of that name."""
        return name in self._tensors

    def get(self, name: str) -> list | None:
        """The values of a tensor as lists; None if there was none. Blocks until the copy is complete."""
        return self.tensor(name).tolist() if name in self._tensors else None

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor on the host, not to be written to; there must be one. Blocks like :meth:`get`."""
        if self._event is not None:
            self._event.synchronize()
            self._event = None
        return self._tensors[name]


def _to_pinned(tensor: torch.Tensor) -> torch.Tensor:
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True, device="cpu")
    return host.copy_(tensor, non_blocking=True)
