"""Threads of an engine on a CPU: the option, what stays the host's, and the warnings."""

from __future__ import annotations

import gc
import logging
import threading
from pathlib import Path

import pytest
import torch

import rootlet
import rootlet.engine.build.parts as build_module
from rootlet.engine import config
from rootlet.engine.steps import threads as step_threads
from rootlet.engine.steps.threads import WINDOW, StepThreads
from rootlet.errors import ConfigError
from rootlet.kernels import native
from rootlet.kernels.threads import MAX_THREADS, Team, default_threads

GREEDY = {"temperature": 0, "max_new_tokens": 6, "ignore_eos": True}
PROMPT = list(range(5, 105))


def build(model, **options):
    options = {"max_total_tokens": 4096, "dtype": "bfloat16"} | options
    return rootlet.Engine(model, load_format="dummy", skip_tokenizer_init=True, **options)


def system_threads() -> set[int]:
    return {int(task.name) for task in Path("/proc/self/task").iterdir()}


@pytest.mark.parametrize("by_hand", [False, True])
def test_engines_of_different_numbers_agree_and_leave_the_host_alone(tiny_model, by_hand):
    host, before = torch.get_num_threads(), system_threads()
    answers, seen = [], []
    engines = [build(tiny_model, num_threads=n, step_by_hand=by_hand) for n in (1, 2, 3)]
    for number, engine in zip((1, 2, 3), engines, strict=True):
        runner = engine._loop._core.runner
        forward = runner.model.forward

        def watched(*args, number=number, runner=runner, forward=forward):
            seen.append((number, runner._threads._team.num_threads, torch.get_num_threads()))
            return forward(*args)

        runner.model.forward = watched
        assert engine.get_server_info()["num_threads"] == number
    for _ in range(2):
        for engine in engines:
            answers.append(engine.generate(input_ids=[PROMPT, PROMPT[:50]], sampling_params=GREEDY))
            assert torch.get_num_threads() == host
    tokens = [[out.token_ids for out in answer] for answer in answers]
    assert all(these == tokens[0] for these in tokens)
    assert {team for _, team, _ in seen} == {1, 2, 3}
    # where the C kernels multiply, torch's own loops stay on the thread that steps
    alone = engines[0]._loop._core.runner._threads._team.torch_threads
    assert all(team == number and torch_threads <= max(number, alone) for number, team, torch_threads in seen)
    for engine in engines:
        engine.close()
    del engine, engines, runner, forward
    gc.collect()
    if native.load() is not None and not by_hand:
        assert system_threads() <= before


def test_the_default_is_told(tiny_model):
    with build(tiny_model) as engine:
        assert engine.config.num_threads is None
        assert engine.get_server_info()["num_threads"] == default_threads()


@pytest.mark.parametrize("value", [0, -3, MAX_THREADS + 1, 2**70, True, 2.0, "2"])
def test_impossible_numbers_are_refused(tiny_model, value):
    assert config._MAX_THREADS == MAX_THREADS
    with pytest.raises(ConfigError, match="num_threads must be"):
        build(tiny_model, num_threads=value)


def test_missing_kernels_are_told_once(tiny_model, monkeypatch, caplog):
    monkeypatch.setattr(build_module, "describe_kernels", lambda: "torch")
    with caplog.at_level(logging.WARNING, "rootlet"), build(tiny_model) as engine:
        engine.generate(input_ids=PROMPT, sampling_params=GREEDY)
    [record] = caplog.records
    assert record.name == "rootlet.engine"
    assert "C compiler" in record.message


@pytest.mark.skipif(native.load() is None, reason="says that they are missing")
def test_present_kernels_are_not(tiny_model, caplog):
    with caplog.at_level(logging.WARNING, "rootlet"), build(tiny_model):
        pass
    assert not caplog.records


class Clock:
    """Time that passes when told to, shared by the clock and the counts of waiting."""

    def __init__(self, monkeypatch) -> None:
        self.now = self.own = self.all = 0.0
        monkeypatch.setattr(step_threads.time, "perf_counter", lambda: self.now)

    def steps(self, threads: StepThreads, seconds: float, *, waited: float, crowd: float = 0.0) -> None:
        """Steps of a tenth of a window; ``waited`` and ``crowd`` are parts of their time."""
        for _ in range(round(seconds / WINDOW * 10)):
            with threads.step():
                self.now += WINDOW / 10
                self.own += WINDOW / 10 * waited
                self.all += WINDOW / 10 * crowd


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def watch(clock: Clock, num_threads: int = 2) -> StepThreads:
    return StepThreads(Team(num_threads, torch_threads=num_threads), lambda: clock.own, lambda: clock.all)


def test_starved_steps_are_told_once(clock, caplog):
    threads = watch(clock)
    clock.steps(threads, 20, waited=0.5)
    assert not caplog.records
    clock.steps(threads, 20, waited=0.9)
    [record] = caplog.records
    assert record.name == "rootlet.engine"
    assert "num_threads (now 2" in record.message
    threads.close()


def test_time_between_steps_is_not_counted(clock, caplog):
    threads = watch(clock)
    clock.steps(threads, WINDOW * 0.8, waited=0.1)
    clock.now += 3600
    clock.steps(threads, WINDOW * 10, waited=0.1)
    assert not caplog.records


def test_another_thread_that_steps_begins_anew(clock, caplog):
    """What one thread has waited says nothing about another."""
    threads = watch(clock)
    clock.steps(threads, WINDOW * 0.8, waited=0.0)
    clock.own += 100
    other = threading.Thread(target=clock.steps, args=(threads, WINDOW * 3), kwargs={"waited": 0.0})
    other.start()
    other.join()
    assert not caplog.records


def test_torch_gets_one_thread_while_cores_are_shared(clock):
    threads = watch(clock, 3)
    team = threads._team
    clock.steps(threads, WINDOW * 3, waited=0, crowd=0.2)
    assert team.torch_threads == 3
    on_one = 0
    for _ in range(200):
        clock.steps(threads, WINDOW, waited=0, crowd=0.3)
        on_one += team.torch_threads == 1
    assert on_one >= 180  # a try with all of them now and then
    for _ in range(step_threads.LONGEST_PAUSE + 2):
        clock.steps(threads, WINDOW, waited=0)
    assert team.torch_threads == 3
    threads.close()


def test_what_linux_counts_is_read():
    delays = step_threads._own_delay(), step_threads._all_delays()
    if Path("/proc/thread-self/schedstat").exists():
        assert 0 <= delays[0] <= delays[1]
    else:
        assert delays == (None, 0)
    assert step_threads._delay(Path("/proc/nowhere/schedstat")) is None
