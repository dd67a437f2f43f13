"""What is said of the owner thread's time adds up, and the engine is left as it was."""

from __future__ import annotations

import sys
import time

import pytest

import rootlet


@pytest.fixture(scope="module")
def engine(script, tmp_path_factory):
    workloads = script("h100_workloads")
    folder = workloads.write_config("TINY", tmp_path_factory.mktemp("shares"))
    options = workloads.ENGINE_OPTIONS | {"device": "cpu", "disable_overlap_schedule": False}
    with rootlet.Engine(str(folder), max_total_tokens=4096, **options) as engine:
        yield engine


def run(engine: rootlet.Engine, tokens: int) -> None:
    params = {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True}
    outputs = engine.generate(input_ids=[[200 + i, 300, 400] for i in range(6)], sampling_params=params)
    assert [len(output.token_ids) for output in outputs] == [tokens] * 6


@pytest.mark.parametrize("functions", [False, True])
def test_the_parts_make_the_whole(script, engine, functions):
    turn = sys.getswitchinterval()
    began = time.perf_counter()
    with script("owner_shares").watch(engine, functions=functions) as owner:
        run(engine, 40)
        time.sleep(0.05)
    elapsed = time.perf_counter() - began
    assert sys.getswitchinterval() == turn
    assert 0.05 < sum(owner.seconds.values()) <= elapsed
    assert all(seconds > 0 for seconds in owner.seconds.values())
    shares = owner.shares()
    assert sum(shares.values()) == pytest.approx(100)
    parts = {}
    for part, name, share in owner.functions():
        assert name.count(":") == 1
        parts[part] = parts.get(part, 0) + share
    assert bool(parts) is functions
    assert parts == pytest.approx({part: shares[part] for part in parts})
    assert "idle" in owner.report()


def test_afterwards_nothing_is_measured(script, engine):
    with script("owner_shares").watch(engine) as owner:
        run(engine, 4)
    before = dict(owner.seconds)
    run(engine, 4)
    assert owner.seconds == before
    core = engine._loop.call(lambda core: core)
    for holder in (core, core.runner, core.scheduler, engine._loop, engine._loop.bells):
        assert not [name for name, value in vars(holder).items() if "_timed" in repr(value)]


def test_functions_are_weighed_by_their_parts(script):
    owner = script("owner_shares").Owner()
    owner.seconds |= {"waiting": 3.0, "launching": 1.0}
    owner.samples.update({("waiting", "a:f"): 1, ("launching", "b:g"): 30, ("launching", "b:h"): 10})
    assert owner.functions() == [
        ("waiting", "a:f", 75),
        ("launching", "b:g", 18.75),
        ("launching", "b:h", 6.25),
    ]
