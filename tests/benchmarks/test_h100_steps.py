"""The time of a step is one that was seen, and nothing runs on afterwards."""

from __future__ import annotations

import time

import pytest

import rootlet


@pytest.fixture(scope="module")
def workloads(script):
    return script("h100_workloads")


@pytest.fixture(scope="module")
def engine(workloads, tmp_path_factory):
    folder = workloads.write_config("TINY", tmp_path_factory.mktemp("steps"))
    options = workloads.ENGINE_OPTIONS | {"device": "cpu"}
    with rootlet.Engine(str(folder), max_total_tokens=8192, **options) as engine:
        yield engine


def test_a_step_takes_a_part_of_the_run(script, engine, workloads):
    requests = workloads.Prompts(2000, 64).batch(0, 64 * 200)
    assert requests.output_lengths == [200] * 4
    before, began = engine.stats(), time.perf_counter()
    seconds = script("h100_steps").time_step(engine, requests, 4, 24)
    assert 0 < seconds < (time.perf_counter() - began) / 10
    stats = engine.stats()
    assert stats.num_steps - before.num_steps >= 24
    assert stats.num_running == stats.num_waiting == 0


def test_requests_that_end_too_early_are_no_measurement(script, engine, workloads):
    requests = workloads.Prompts(2000, 64).batch(1, 64 * 8)
    with pytest.raises(RuntimeError, match="ended before"):
        script("h100_steps").time_step(engine, requests, 4, 8)
    assert engine.stats().num_running == 0


def test_missed_tokens_share_a_gap(script):
    stamps = [(10, 1.0), (11, 1.5), (15, 2.5), (16, 5.5)]
    assert script("h100_steps").median_gap(stamps) == 0.25
