"""Recorded steps after each of whose tokens one is drawn: decodes, with drafts or without.

There is a recording for a number of rows; it reads what changes (the columns of a layout, data of planners)
from a room of its own. A batch is padded to the next size.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch

from ....cache.kv_kind import Place
from ....kernels.gpu.argmax import argmax
from ....kernels.gpu.step_inputs import store_tokens
from ..gpu_inputs import GpuInputs
from ..layout import StepLayout
from ..step_input import SampledPlaces
from .recorder import RecordedStep, Recorder
from .room import Room

if TYPE_CHECKING:
    from ....cache.kv_cache import KVCache
    from ....cache.kv_kind import RecordedData
    from ....models.interface import Model


def decode_sizes(limit: int) -> list[int]:
    """Numbers of rows to record, up to ``limit``: close together where a padding row costs most."""
    steps = [1, 2, 4, *range(8, 33, 8), *range(48, 129, 16), *range(160, 257, 32)]
    steps += [*range(320, 513, 64), *range(640, 1025, 128), *range(1280, limit + 256, 256)]
    sizes = [size for size in steps if size < limit]
    return [*sizes, limit]


class DecodeGraphs:
    """Records and replays steps of up to ``max_rows`` drawn tokens. Call on the runner's stream."""

    def __init__(
        self, model: Model, kv: KVCache, inputs: GpuInputs, recorder: Recorder, max_rows: int
    ) -> None:
        self._model = model
        self._kv = kv
        self._inputs = inputs
        self._recorder = recorder
        self._sizes = decode_sizes(max_rows)
        self._steps: dict[tuple[int, ...], RecordedStep] = {}

    def fits(self, layout: StepLayout) -> bool:
        """Whether a token is drawn after each of the step's, and they are not too many."""
        if layout.num_tokens > self._sizes[-1]:
            return False
        return layout.only_decodes or (layout.all_sample and not layout.scores)

    def replay(self, layout: StepLayout) -> tuple[torch.Tensor, SampledPlaces]:
        """Enqueue the layers: hidden states [S, H], and where what is drawn of them goes."""
        output, columns = self._replay(layout, greedy=False)
        slots, lengths = columns[0], columns[-1]  # "slot" comes first, "length" was put last
        count = len(output)
        return output, SampledPlaces(None, slots[:count], lengths[:count].long())

    def replay_greedy(self, layout: StepLayout) -> torch.Tensor:
        """Enqueue the step: token ids [S] int64, already stored. Looks for no NaN."""
        return self._replay(layout, greedy=True)[0]

    def ahead(self, max_rows: int, columns: Sequence[str]) -> Iterator[RecordedStep]:
        """Steps of up to ``max_rows`` that share no prefixes, of a model that reads these columns."""
        padding = StepLayout.padding(1, 1, columns)
        for size in self._sizes[: bisect_right(self._sizes, max_rows)]:
            data = [planner.recorded_data(padding, size) for planner in self._inputs.planners]
            for greedy in (True, False):
                yield self._of((*padding.columns, "length"), size, greedy, data)

    def close(self) -> None:
        """Let the recordings go."""
        self._steps.clear()

    def _replay(self, layout: StepLayout, *, greedy: bool) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
        """What is recorded to be there of the step's T tokens, and their columns, [T or more] int32 each."""
        columns = layout.columns
        columns["length"] = layout.positions + 1
        count = layout.num_tokens  # each is a row: drafts too find the tokens before them in the cache
        size = self._sizes[bisect_left(self._sizes, count)]
        data = [planner.recorded_data(layout, size) for planner in self._inputs.planners]
        step = self._of(tuple(columns), size, greedy, data)
        return step([*columns.values()], data)[:count], step.room.own

    def _of(
        self, names: Sequence[str], size: int, greedy: bool, data: Sequence[RecordedData]
    ) -> RecordedStep:
        """The step that has room for ``size`` tokens with such data."""
        key = (size, greedy, *(one.key for one in data))
        step = self._steps.get(key)
        if step is None:
            step = self._steps[key] = self._make(names, size, greedy, data)
        return step

    def _make(
        self, names: Sequence[str], size: int, greedy: bool, data: Sequence[RecordedData]
    ) -> RecordedStep:
        room = Room([Place((size,))] * len(names), data, self._inputs.device)  # padding: slot 0, no context
        step = partial(self._step, dict(zip(names, room.own)), room.planned, greedy)
        return RecordedStep(step, room, self._recorder)

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
