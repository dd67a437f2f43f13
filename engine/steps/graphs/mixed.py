"""Recorded steps of rows of any lengths: chunks of prompts, with the decodes beside them.

There is a recording for a number of tokens and, because attention to long contexts is divided the more the
fewer rows there are, for a coarse number of decodes. Both are padded: tokens by those of slot 0, which mean
nothing, rows by rows without tokens.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import torch

from ....cache.kv_cache import KVCache
from ....cache.kv_kind import Place, RecordedData, StepShape
from ....models.interface import Model
from ..gpu_inputs import GpuInputs
from ..layout import StepLayout
from ..planners import plan_wanted
from ..step_input import SampledPlaces
from .recorder import RecordedStep, Recorder
from .room import Room

_FEW_DECODES = (0, 4, 16)


def mixed_sizes(limit: int) -> list[int]:
    """Numbers of tokens to record, up to ``limit``: products on a GPU go by tiles of 64 to 256 tokens."""
    steps = [*range(64, 513, 64), *range(640, 1025, 128), *range(1280, 2049, 256), *range(2560, 4097, 512)]
    steps += range(5120, limit + 1024, 1024)
    sizes = [size for size in steps if size < limit]
    return [*sizes, limit]


class MixedGraphs:
    """Records and replays steps of up to ``max_tokens``. Call on the runner's stream.

    ``max_rows``: most requests that run at once.
    """

    def __init__(
        self,
        model: Model,
        kv: KVCache,
        inputs: GpuInputs,
        recorder: Recorder,
        max_tokens: int,
        max_rows: int,
    ) -> None:
        self._model = model
        self._kv = kv
        self._inputs = inputs
        self._recorder = recorder
        self._sizes = mixed_sizes(max_tokens)
        self._max_rows = max_rows
        self._steps: dict[tuple[int, ...], RecordedStep] = {}

    def replay(self, layout: StepLayout) -> tuple[torch.Tensor, SampledPlaces] | None:
        """Enqueue the layers: hidden states [S, H], and where what is drawn of them goes.

        None: this step must be launched kernel by kernel.
        """
        shape = self._shape(layout)
        if shape is None:
            return None
        data = self._data(layout, shape)
        if data is None:
            return None
        columns = layout.columns
        step = self._of(tuple(columns), shape, data)
        sampled = (layout.last_tokens, layout.sample_slots, layout.sample_positions)
        output = step([*columns.values(), *sampled], data)
        count = layout.num_samples
        *_, slots, positions = step.room.own
        return output[:count], SampledPlaces(None, slots[:count], positions[:count].long())

    def ahead(self, max_tokens: int, columns: Sequence[str]) -> Iterator[RecordedStep]:
        """Steps of up to ``max_tokens`` and any number of decodes, of a model that reads these columns."""
        padding = StepLayout.padding(1, 2, columns)
        for size in self._sizes[: bisect_right(self._sizes, max_tokens)]:
            for shape in self._shapes(size):
                data = self._data(padding, shape)
                if data is not None:
                    yield self._of(tuple(padding.columns), shape, data)

    def close(self) -> None:
        """Let the recordings go."""
        self._steps.clear()

    def _data(self, layout: StepLayout, shape: StepShape) -> list[RecordedData] | None:
        """What each planner brings of the step; None if one of them cannot."""
        data = []
        for planner in self._inputs.planners:
            own = planner.recorded_rows(layout, shape)
            if own is None:
                return None
            data.append(own)
        return data

    def _of(self, names: Sequence[str], shape: StepShape, data: Sequence[RecordedData]) -> RecordedStep:
        """The step of that shape with such data."""
        key = (*shape, *(one.key for one in data))
        step = self._steps.get(key)
        if step is None:
            step = self._steps[key] = self._make(names, shape, data)
        return step

    def _shapes(self, size: int) -> list[StepShape]:
        """Those of ``size`` tokens, by their room for decodes."""
        num_others = max(min(size // 4, 64), size // 32)
        rows = [*(few for few in _FEW_DECODES if few < size), min(size, self._max_rows)]
        return [StepShape(size, num_decodes, num_others) for num_decodes in rows]

    def _shape(self, layout: StepLayout) -> StepShape | None:
        """The least that has room for the step, if anything is recorded that has."""
        num_tokens, num_decodes = layout.num_tokens, layout.num_decodes
        if num_tokens > self._sizes[-1] or layout.scores or layout.pieces:
            return None
        shapes = self._shapes(self._sizes[bisect_left(self._sizes, num_tokens)])
        shape = next(shape for shape in shapes if shape.num_decodes >= num_decodes)
        fits = layout.num_rows - num_decodes <= shape.num_others and layout.num_samples <= _num_samples(shape)
        return shape if fits else None

    def _make(self, names: Sequence[str], shape: StepShape, data: Sequence[RecordedData]) -> RecordedStep:
        places = [Place((shape.num_tokens,))] * len(names) + [Place((_num_samples(shape),))] * 3
        room = Room(places, data, self._inputs.device)
        columns, sampled = dict(zip(names, room.own)), room.own[len(names) :]
        return RecordedStep(partial(self._step, columns, sampled, room.planned), room, self._recorder)

    def _step(
        self,
        columns: Mapping[str, torch.Tensor],
        sampled: Sequence[torch.Tensor],
        data: Sequence[Sequence[torch.Tensor]],
    ) -> torch.Tensor:
        inputs = self._inputs
        tokens, slots, positions = sampled
        gathered = inputs.gather(columns)
        plans = [planner.plan_recorded_rows(own) for planner, own in zip(inputs.planners, data, strict=True)]
        # a sampled token's position is its row's length
        wanted = plan_wanted(inputs.planners, tokens, slots, positions)
        hidden = self._model.forward(inputs.forward_input(columns, gathered, plans, wanted), self._kv)
        return SampledPlaces(tokens, slots, positions).states(hidden)


def _num_samples(shape: StepShape) -> int:
    return min(shape.num_tokens, shape.num_decodes + shape.num_others)
