"""Recorded decode steps without a GPU: what a recording would repeat is run again, on the same tensors."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch

from rootlet.engine.build import parts
from rootlet.engine.build.backends import Backend
from rootlet.engine.steps import decode_graphs, triton_planner
from rootlet.engine.steps.decode_graphs import DecodeGraphs
from rootlet.engine.steps.gpu_inputs import GpuInputs
from rootlet.engine.steps.triton_planner import TritonPlanner


class WideInputs(GpuInputs):
    """The inputs of a GPU for kernels of the CPU, which take positions as int64."""

    def forward_input(self, columns, gathered, plans, wanted=None):
        forward = super().forward_input(columns, gathered, plans, wanted)
        return replace(forward, positions=forward.positions.long())


class Again:
    """Stands in for a CUDA graph."""

    def __init__(self, step, output):
        self.step = step
        self.output = output

    def replay(self):
        self.output.copy_(self.step())


class ReplayedGraphs(DecodeGraphs):
    """Replays by running; ``replays`` counts those of (size, greedy, tiles)."""

    made: list[ReplayedGraphs] = []  # noqa: RUF012

    def __init__(self, *args):
        super().__init__(*args)
        self.replays = []
        self.made.append(self)

    def _replay(self, layout, *, greedy):
        self.replays.append((layout.num_tokens, greedy))
        output, columns = super()._replay(layout, greedy=greedy)
        return output.clone(), columns  # a GPU's copy to the host stands in line before the next replay

    def _record(self, names, size, greedy, data):
        columns = torch.zeros((len(names), -(-size // 4) * 4), dtype=torch.int32)
        rooms = [one.room(torch.device("cpu")) for one in data]
        step = partial(self._step, dict(zip(names, columns[:, :size])), rooms, greedy)
        output = step()
        return decode_graphs._Graph(Again(step, output), columns, rooms, output)


def use_gpu_steps(monkeypatch):
    """Have engines on the CPU build and record steps as those on a GPU do, attention by Triton's interpreter.

    Returns the list of graphs that they make.
    """

    def make_backend(name, config, loaded, device):
        return Backend("triton", WideInputs, partial(TritonPlanner, share_prefixes=True), can_record=True)

    # interpreted programs run one after the other: let them be few
    monkeypatch.setattr(triton_planner, "num_decode_splits", lambda *_: 1)
    monkeypatch.setattr(decode_graphs, "argmax", partial(decode_graphs.argmax, splits=1))
    monkeypatch.setattr(parts, "make_backend", make_backend)
    monkeypatch.setattr(decode_graphs, "DecodeGraphs", ReplayedGraphs)
    monkeypatch.setattr(ReplayedGraphs, "made", [])
    return ReplayedGraphs.made
