"""Decode steps recorded as CUDA graphs: one launch instead of hundreds, nothing built on the host.

A graph is recorded for a batch size at its first use, on padding rows, and reads everything that changes
(the columns of a layout, data of planners) from tensors of its own. A batch is padded to the next size.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import torch

from ...kernels.device import RECORDING
from ...kernels.gpu.argmax import argmax
from ...kernels.gpu.step_inputs import store_tokens
from ...kernels.upload import upload
from .gpu_inputs import GpuInputs
from .layout import StepLayout
from .step_input import SampledPlaces

if TYPE_CHECKING:
    from ...cache.kv_cache import KVCache
    from ...cache.kv_kind import RecordedData
    from ...models.interface import Model


def graph_sizes(limit: int) -> list[int]:
    """Batch sizes to record, up to ``limit``: close together where a padding row costs most."""
    steps = [1, 2, 4, *range(8, 33, 8), *range(48, 129, 16), *range(160, 257, 32)]
    steps += [*range(320, 513, 64), *range(640, 1025, 128), *range(1280, limit + 256, 256)]
    sizes = [size for size in steps if size < limit]
    return [*sizes, limit]


@dataclass(frozen=True)
class _Graph:
    """One recorded step and the tensors it reads and writes."""

    graph: torch.cuda.CUDAGraph
    columns: torch.Tensor  # [C, B or more] int32: what a layout has per token, and the lengths
    data: Sequence[Sequence[torch.Tensor]]  # per planner, where its RecordedData go
    output: torch.Tensor  # greedy token ids [B] int64, or hidden states [B, H]


class DecodeGraphs:
    """Records and replays decode steps of up to ``max_batch_size`` rows. Call on the runner's stream."""

    def __init__(self, model: Model, kv: KVCache, inputs: GpuInputs, max_batch_size: int) -> None:
        self._model = model
        self._kv = kv
        self._inputs = inputs
        self._sizes = graph_sizes(max_batch_size)
        self._graphs: dict[tuple[int, ...], _Graph] = {}
        self._pool: tuple[int, int] | None = None  # one memory pool: steps never run at the same time

    def fits(self, layout: StepLayout) -> bool:
        """Whether a token is drawn after each of the step's, and they are not too many."""
        if layout.num_tokens > self._sizes[-1]:
            return False
        return layout.only_decodes or (layout.all_sample and not layout.scores)

    def replay(self, layout: StepLayout) -> tuple[torch.Tensor, SampledPlaces]:
        """Enqueue the layers: hidden states [S, H], and where what is drawn of them goes."""
        output, columns = self._replay(layout, greedy=False)
        slots, lengths = columns[0], columns[-1]  # "slot" comes first, "length" was put last
        return output, SampledPlaces(None, slots[: len(output)], lengths[: len(output)].long())

    def replay_greedy(self, layout: StepLayout) -> torch.Tensor:
        """Enqueue the step: token ids [S] int64, already stored. Looks for no NaN."""
        return self._replay(layout, greedy=True)[0]

    def _replay(self, layout: StepLayout, *, greedy: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """The recording's output for the step's T tokens, and their columns [C, T or more] int32."""
        columns = layout.columns
        columns["length"] = layout.positions + 1
        count = layout.num_tokens  # each is a row: drafts too find the tokens before them in the cache
        size = self._sizes[bisect_left(self._sizes, count)]
        data = [planner.recorded_data(layout, size) for planner in self._inputs.planners]
        key = (size, greedy, *(one.key for one in data))
        recorded = self._graphs.get(key)
        if recorded is None:
            recorded = self._graphs[key] = self._record(tuple(columns), size, greedy, data)
        rows = np.zeros(recorded.columns.shape, dtype=np.int32)  # padding: slot 0, nothing to attend to
        for row, values in zip(rows, columns.values(), strict=True):
            row[:count] = values
        arrays = [array for one in data for array in one.arrays]
        sent, *more = upload(self._inputs.device, rows, *arrays)
        for target, new in zip(chain.from_iterable(recorded.data), more, strict=True):
            target.copy_(new)
        recorded.columns.copy_(sent)
        recorded.graph.replay()
        return recorded.output[:count], sent

    def _record(self, names: Sequence[str], size: int, greedy: bool, data: Sequence[RecordedData]) -> _Graph:
        device = self._inputs.device
        width = -(-size // 4) * 4  # each column begins at a multiple of 16 bytes
        rows = torch.zeros((len(names), width), dtype=torch.int32, device=device)
        columns = dict(zip(names, rows[:, :size]))
        rooms = [one.room(device) for one in data]
        self._step(columns, rooms, greedy)  # compiles and fills caches, which a recording must not do
        graph = torch.cuda.CUDAGraph()
        # thread_local: other threads of the process may go on using the GPU while this one records
        pool = {} if self._pool is None else {"pool": self._pool}
        with RECORDING:
            graph.capture_begin(**pool, capture_error_mode="thread_local")
            try:
                output = self._step(columns, rooms, greedy)
            finally:
                graph.capture_end()
        self._pool = graph.pool()
        return _Graph(graph, rows, rooms, output)

    def _step(
        self, columns: Mapping[str, torch.Tensor], data: Sequence[Sequence[torch.Tensor]], greedy: bool
    ) -> torch.Tensor:
        inputs, slots, lengths = self._inputs, columns["slot"], columns["length"]
        gathered = inputs.gather(columns)
        plans = [
            planner.plan_recorded(slots, lengths, own)
            for planner, own in zip(inputs.planners, data, strict=True)
        ]
        hidden = self._model.forward(inputs.forward_input(columns, gathered, plans), self._kv)
        if not greedy:
            return hidden
        token_ids = argmax(self._model.compute_logits(hidden))
        store_tokens(inputs.tables.tokens, slots, lengths, token_ids)
        return token_ids
