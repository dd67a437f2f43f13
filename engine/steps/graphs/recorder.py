"""Recording a step as a CUDA graph: one launch instead of hundreds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ....kernels.device import RECORDING

if TYPE_CHECKING:
    import numpy as np

    from ....cache.kv_kind import RecordedData
    from .room import Room


class Recording(NamedTuple):
    """A recorded step and what it writes."""

    graph: torch.cuda.CUDAGraph
    output: torch.Tensor

    def replay(self) -> torch.Tensor:
        """Enqueue the step: its output, whose contents are this step's until the next one is enqueued."""
        self.graph.replay()
        return self.output


class Recorder:
    """Records steps on the current stream into one pool of memory: they never run at the same time."""

    def __init__(self) -> None:
        self._pool: tuple[int, int] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the device that recordings hold, in torch's allocator but apart from all else."""
        if self._pool is None:
            return 0
        segments = torch.cuda.memory_snapshot()
        return sum(one["total_size"] for one in segments if tuple(one["segment_pool_id"]) == self._pool)

    def close(self) -> None:
        """Later recordings get a pool of their own: this one goes with the last recording."""
        self._pool = None

    def record(self, step: Callable[[], torch.Tensor]) -> Recording:
        """Record ``step``, which must have run before: it then compiled and filled caches, forbidden here."""
        graph = torch.cuda.CUDAGraph()
        pool: dict[str, Any] = {} if self._pool is None else {"pool": self._pool}
        with RECORDING:
            # thread_local: other threads of the process may go on using the GPU while this one records
            graph.capture_begin(**pool, capture_error_mode="thread_local")
            try:
                output = step()
            finally:
                graph.capture_end()
        self._pool = graph.pool()
        return Recording(graph, output)


class RecordedStep:
    """A step that is run at its first use, recorded at its second, and replayed from then on.

    Running compiles its kernels and fills caches, which a recording must not do; what is used once is not
    worth recording.

    Args:
        step: enqueues the kernels and returns what they write. It reads ``room`` and what never moves.
    """

    def __init__(self, step: Callable[[], torch.Tensor], room: Room, recorder: Recorder) -> None:
        self.room = room
        self._step = step
        self._recorder = recorder
        self._has_run = False
        self._recording: Recording | None = None

    @property
    def is_recorded(self) -> bool:
        """Whether it is only replayed from now on."""
        return self._recording is not None

    def __call__(self, own: Sequence[np.ndarray], data: Sequence[RecordedData]) -> torch.Tensor:
        """Enqueue the step for these contents of the room; what it returns is good until the next step."""
        self.room.put(own, data)
        if self._recording is None and self._has_run:
            self._recording = self._recorder.record(self._step)
        if self._recording is not None:
            return self._recording.replay()
        self._has_run = True
        return self._step()

    def get_ready(self) -> None:
        """Do a part of what is left until it is recorded: run it for what the room holds, or record it."""
        if self._has_run:
            self._recording = self._recording or self._recorder.record(self._step)
        else:
            self._has_run = True
            self._step()
