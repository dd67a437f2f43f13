"""Decode steps recorded as CUDA graphs: one launch instead of hundreds, nothing built on the host.

A graph is recorded for a batch size at its first use, on padding rows, and reads everything that changes
(slots, positions, lengths, shared prefixes) from tensors of its own. A batch is padded to the next size.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from ...kernels.device import RECORDING
from ...kernels.gpu.argmax import argmax
from ...kernels.gpu.attention import SharedPrefixes
from ...kernels.gpu.step_inputs import store_tokens
from ...models.forward import ForwardInput
from ..schedule.batch import Batch
from .gpu_inputs import TritonInputs, upload
from .layout import StepLayout
from .shared_prefixes import padded
from .torch_inputs import StepInput

if TYPE_CHECKING:
    from ...cache.kv_cache import KVCache
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
    rows: torch.Tensor  # [3, B or more] int32: slots, positions, lengths
    shared: SharedPrefixes | None
    output: torch.Tensor  # greedy token ids [B] int64, or hidden states [B, H]


class DecodeGraphs:
    """Records and replays decode steps of up to ``max_batch_size`` rows. Call on the runner's stream."""

    def __init__(self, model: Model, kv: KVCache, inputs: TritonInputs, max_batch_size: int) -> None:
        self._model = model
        self._kv = kv
        self._inputs = inputs
        self._sizes = graph_sizes(max_batch_size)
        self._graphs: dict[tuple[int, bool, int], _Graph] = {}
        self._pool: tuple[int, int] | None = None  # one memory pool: steps never run at the same time

    def fits(self, batch: Batch) -> bool:
        """Whether a token is drawn after each of the batch's, and they are not too many."""
        if batch.num_tokens > self._sizes[-1]:
            return False
        return all(row.num_tokens == row.num_samples and row.score is None for row in batch.other_rows)

    def replay(self, batch: Batch, *, greedy: bool) -> tuple[torch.Tensor, StepInput | None]:
        """Enqueue the step: greedy token ids [B] already stored, or hidden states [B, H] and their input."""
        layout = StepLayout.of(batch)
        count = layout.num_tokens  # each is a row: drafts too find the tokens before them in the cache
        size = self._sizes[bisect_left(self._sizes, count)]
        finder = self._inputs.groups
        groups = None if finder is None else finder.of(batch.sampling_requests, layout.positions)
        num_tiles = 0 if groups is None else finder.capacity(groups)
        recorded = self._graphs.get((size, greedy, num_tiles))
        if recorded is None:
            recorded = self._graphs[size, greedy, num_tiles] = self._record(size, greedy, num_tiles)
        rows = np.zeros(recorded.rows.shape, dtype=np.int32)  # padding: slot 0, nothing to attend to
        rows[0, :count] = layout.token_slots
        rows[1, :count] = layout.positions
        rows[2, :count] = rows[1, :count] + 1
        if groups is None:
            [sent] = upload(self._inputs.device, rows)
        else:
            sent, *shared = upload(self._inputs.device, rows, *padded(groups, size, num_tiles))
            for target, values in zip(
                (recorded.shared.rows, recorded.shared.lens, recorded.shared.starts), shared
            ):
                target.copy_(values)
        recorded.rows.copy_(sent)
        recorded.graph.replay()
        output = recorded.output[:count]
        if greedy:
            return output, None
        return output, StepInput(None, None, sent[0, :count], sent[2, :count].long())

    def _record(self, size: int, greedy: bool, num_tiles: int) -> _Graph:
        device = self._inputs.device
        columns = -(-size // 4) * 4  # each of the three rows begins at a multiple of 16 bytes
        rows = torch.zeros((3, columns), dtype=torch.int32, device=device)
        shared = self._inputs.groups.empty(size, num_tiles, device) if num_tiles else None
        self._step(rows[:, :size], shared, greedy)  # compiles and fills caches, which a recording must not do
        graph = torch.cuda.CUDAGraph()
        # thread_local: other threads of the process may go on using the GPU while this one records
        pool = {} if self._pool is None else {"pool": self._pool}
        with RECORDING:
            graph.capture_begin(**pool, capture_error_mode="thread_local")
            try:
                output = self._step(rows[:, :size], shared, greedy)
            finally:
                graph.capture_end()
        self._pool = graph.pool()
        return _Graph(graph, rows, shared, output)

    def _step(self, rows: torch.Tensor, shared: SharedPrefixes | None, greedy: bool) -> torch.Tensor:
        inputs = self._inputs
        slots, positions, lengths = rows
        input_ids, kv_slots = inputs.gather(slots, positions)
        plan = inputs.plan_decodes(slots, lengths, shared)
        hidden = self._model.forward(ForwardInput(input_ids, positions, kv_slots, plan), self._kv)
        if not greedy:
            return hidden
        token_ids = argmax(self._model.compute_logits(hidden))
        store_tokens(inputs.tables.tokens, slots, lengths, token_ids)
        return token_ids
