"""Where a recorded step reads what changes from one replay to the next."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ....cache.kv_kind import Place

_ALIGN = 4  # int32 elements: Triton compiles a kernel once more for pointers not multiples of 16 bytes


class Room:
    """Arrays in one tensor on ``device``, so that one copy, which nobody waits for, brings all of a step's.

    ``tensors`` are the arrays, in the order of ``places``; at first they hold what means nothing.
    """

    def __init__(self, places: Sequence[Place], device: torch.device) -> None:
        self._places = places
        self._begins, size = [], 0
        for shape, _ in places:
            self._begins.append(size)
            size += -(-int(np.prod(shape)) // _ALIGN) * _ALIGN
        self._blank = np.zeros(size, dtype=np.int32)
        for begin, (shape, fill) in zip(self._begins, places):
            self._blank[begin : begin + int(np.prod(shape))] = fill
        self._pinned = device.type == "cuda"
        self._data = torch.from_numpy(self._blank.copy()).to(device)
        self.tensors = [
            self._data[begin : begin + int(np.prod(shape))].view(shape)
            for begin, (shape, _) in zip(self._begins, places)
        ]

    def put(self, arrays: Sequence[np.ndarray]) -> None:
        """Bring a step's arrays: each of its place's shape, or shorter in its last dimension."""
        host = torch.empty(len(self._blank), dtype=torch.int32, pin_memory=self._pinned, device="cpu")
        view = host.numpy()
        view[:] = self._blank
        for begin, (shape, _), array in zip(self._begins, self._places, arrays, strict=True):
            place = view[begin : begin + int(np.prod(shape))].reshape(shape)
            place[..., : array.shape[-1]] = array
        self._data.copy_(host, non_blocking=True)
