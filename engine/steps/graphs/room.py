"""Where a recorded step reads what changes from one replay to the next."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from ....cache.kv_kind import Place, RecordedData
from ....kernels.upload import side_by_side


class Room:
    """Arrays in one tensor on ``device``, so that one copy, which nobody waits for, brings all of a step's.

    ``own`` are the tensors of ``places``, ``planned`` those of each planner's data; at first they hold what
    means nothing.
    """

    def __init__(self, places: Sequence[Place], data: Sequence[RecordedData], device: torch.device) -> None:
        places = [*places, *(place for one in data for place in one.places)]
        self._shapes = [shape for shape, _ in places]
        self._parts, size = side_by_side(map(math.prod, self._shapes))
        self._blank = np.zeros(size, dtype=np.int32)
        for part, (_, fill) in zip(self._parts, places):
            self._blank[part] = fill
        self._pinned = device.type == "cuda"
        self._data = torch.from_numpy(self._blank.copy()).to(device)
        tensors = iter([self._data[part].view(shape) for part, shape in zip(self._parts, self._shapes)])
        num_planned = sum(len(one.places) for one in data)
        self.own = [next(tensors) for _ in range(len(places) - num_planned)]
        self.planned = [[next(tensors) for _ in one.places] for one in data]

    def put(self, own: Sequence[np.ndarray], data: Sequence[RecordedData]) -> None:
        """Bring a step's arrays: each of its place's shape, or shorter in its last dimension."""
        host = torch.empty(len(self._blank), dtype=torch.int32, pin_memory=self._pinned, device="cpu")
        view = host.numpy()
        view[:] = self._blank
        arrays = [*own, *(array for one in data for array in one.arrays)]
        for part, shape, array in zip(self._parts, self._shapes, arrays, strict=True):
            view[part].reshape(shape)[..., : array.shape[-1]] = array
        self._data.copy_(host, non_blocking=True)
