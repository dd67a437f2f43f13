"""Gloo: tensors through host memory and sockets."""

from __future__ import annotations

import datetime
from typing import Any

import torch
import torch.distributed as dist

from ..errors import TransferError
from .waiting import Watch, first_line, keep_until

_SLICE = datetime.timedelta(milliseconds=100)  # of a wait in C++; Ctrl-C arrives between two


class GlooLink:
    """One rank."""

    def __init__(self, store: Any, rank: int, world_size: int, timeout: datetime.timedelta) -> None:
        self._group: Any = dist.ProcessGroupGloo(store, rank, world_size, timeout=timeout)
        self._work: Any = None
        self._is_sender = rank == 0

    def broadcast(self, tensor: torch.Tensor, watch: Watch) -> None:
        """Ends with gloo's own error as soon as the connection to rank 0 does."""
        through = tensor if tensor.device.type == "cpu" and tensor.is_contiguous() else None
        if through is None:
            through = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
            if self._is_sender:
                through.copy_(tensor)
        group = self._group
        if group is None:
            raise TransferError("The group was closed.")
        work = self._work = group.broadcast(through.view(-1).view(torch.uint8), 0)  # gloo knows few dtypes
        del group  # or it would end here, when it is closed meanwhile
        while True:
            try:
                work.wait(_SLICE)
                break
            except RuntimeError:
                if work.is_completed():
                    _finish(work)
                    break
            watch()
        if through is not tensor and not self._is_sender:
            tensor.copy_(through)

    def close(self) -> None:
        """Gloo's end waits for a broadcast that is under way, which nothing but its timeout can end."""
        held, self._group = [self._group], None
        if self._work is not None and not self._work.is_completed():
            keep_until(self._work.is_completed, held)


def _finish(work: Any) -> None:
    try:
        work.wait()
    except RuntimeError as error:
        raise TransferError(f"The connection to another rank has ended: {first_line(error)}") from error
