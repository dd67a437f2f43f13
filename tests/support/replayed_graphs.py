"""Recorded steps without a GPU: what a recording would repeat is run again, on the same tensors."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import partial

from rootlet.engine.build import parts
from rootlet.engine.build.backends import Backend
from rootlet.engine.steps import triton_planner
from rootlet.engine.steps.gpu_inputs import GpuInputs
from rootlet.engine.steps.graphs import decodes, mixed, recorder, steps
from rootlet.engine.steps.graphs.recorder import RecordedStep, Recorder, Recording
from rootlet.engine.steps.graphs.steps import StepGraphs
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


class ReplayingRecorder(Recorder):
    """Recordings that run again what they recorded."""

    def record(self, step):
        output = step()
        return Recording(Again(step, output), output)


class WatchedStep(RecordedStep):
    """Its outputs are copies: on a GPU what reads them stands in line before the next replay."""

    def __call__(self, own, data):
        return super().__call__(own, data).clone()


class WatchedGraphs(StepGraphs):
    """``made``: all of them; ``replays``: (tokens, greedy, recorded) of each step in turn; ``is_ready``: set
    when nothing is left to record ahead.

    When their engine is closed, ``decodes`` are the recorded steps by (rows, greedy, ...) and ``mixed`` those
    by (tokens, decodes, other rows, ...).
    """

    made: list[WatchedGraphs] = []  # noqa: RUF012

    def __init__(self, *args):
        super().__init__(*args)
        self.replays = []
        self.is_ready = threading.Event()
        self.made.append(self)

    def replay(self, layout):
        replayed = super().replay(layout)
        self.replays.append((layout.num_tokens, False, replayed is not None))
        return replayed

    def replay_greedy(self, layout):
        replayed = super().replay_greedy(layout)
        self.replays.append((layout.num_tokens, True, replayed is not None))
        return replayed

    def record_ahead(self, columns):
        more = super().record_ahead(columns)
        if not more:
            self.is_ready.set()
        return more

    def close(self):
        self.decodes, self.mixed = dict(self._decodes._steps), dict(self._mixed._steps)
        super().close()
        assert not self._decodes._steps
        assert not self._mixed._steps


def use_gpu_steps(monkeypatch):
    """Have engines on the CPU build and record steps as those on a GPU do, attention by Triton's interpreter.

    Returns the list of graphs that they make.
    """

    def make_backend(name, config, model, device):
        return Backend("triton", WideInputs, partial(TritonPlanner, share_prefixes=True), can_record=True)

    # interpreted programs run one after the other: let them be few
    monkeypatch.setattr(triton_planner, "num_decode_splits", lambda *_: 1)
    monkeypatch.setattr(decodes, "argmax", partial(decodes.argmax, splits=1))
    monkeypatch.setattr(parts, "make_backend", make_backend)
    monkeypatch.setattr(recorder, "Recorder", ReplayingRecorder)
    for module in (decodes, mixed):
        monkeypatch.setattr(module, "RecordedStep", WatchedStep)
    monkeypatch.setattr(steps, "StepGraphs", WatchedGraphs)
    monkeypatch.setattr(WatchedGraphs, "made", [])
    return WatchedGraphs.made
