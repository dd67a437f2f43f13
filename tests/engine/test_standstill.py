"""The core stands still and goes on: what becomes of requests, who hears of it, and what the cache finds."""

from __future__ import annotations

import pytest
from fake_runner import Recorder, expected_output, make_core, make_submission, run_to_end
from hypothesis import given, settings
from hypothesis import strategies as st

from rootlet.engine.schedule.invariants import check_invariants
from rootlet.errors import InvalidRequestError

MODES = ("abort", "finish", "recompute", "keep")
PROMPTS = {"a": list(range(20)), "b": [*range(12), 7, 7], "c": [5] * 9}


def start(core, lengths):
    recorders = {}
    for rid, length in lengths.items():
        recorders[rid] = Recorder()
        core.add(make_submission(rid, PROMPTS[rid], length), recorders[rid])
    return recorders


def tokens(recorder):
    return list(recorder.outputs[-1].token_ids)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_what_becomes_of_requests(mode, overlap):
    core, runner = make_core(max_running=2, overlap=overlap)
    recorders = start(core, {"a": 12, "b": 6, "c": 5})  # the last waits for a slot
    for _ in range(4):
        core.step()
    quiet = []
    aborted = core.stop(mode, lambda: quiet.append(len(runner.batches)))
    assert aborted == (3 if mode == "abort" else 0)
    assert core.is_stopped
    assert bool(quiet) == (mode != "finish")
    late = start(core, {"a": 3} if mode == "abort" else {})
    run_to_end(core)
    assert quiet == [len(runner.batches)]  # and no step after it
    ended = {rid for rid, recorder in recorders.items() if recorder.ends}
    assert ended == {"abort": {"a", "b", "c"}, "finish": {"a", "b"}}.get(mode, set())
    core.go_on()
    assert not core.is_stopped
    run_to_end(core)
    check_invariants(core.scheduler)
    for rid, recorder in recorders.items():
        whole = expected_output(PROMPTS[rid], {"a": 12, "b": 6, "c": 5}[rid])
        assert recorder.ends == 1
        assert tokens(recorder) == (whole[: len(tokens(recorder))] if mode == "abort" else whole)
    for recorder in late.values():
        assert tokens(recorder) == expected_output(PROMPTS["a"], 3)


def test_the_last_request_may_be_aborted_instead_of_finishing():
    """Who waits for the end hears of it, though no step follows."""
    core, _ = make_core()
    start(core, {"a": 50})
    core.step()
    quiet = []
    core.stop("finish", lambda: quiet.append(True))
    assert not quiet
    core.abort("a")
    assert quiet == [True]
    assert not core.has_work


def test_stops_add_up():
    core, runner = make_core()
    recorders = start(core, {"a": 6})
    core.step()
    core.stop("keep", lambda: None)
    with pytest.raises(InvalidRequestError, match=r"paused.*resume\(\)"):
        core.stop("finish", lambda: None)
    core.stop("recompute", lambda: None)
    core.go_on()
    steps = len(runner.batches)
    run_to_end(core)
    assert len(runner.batches) == steps
    core.go_on()
    run_to_end(core)
    assert tokens(recorders["a"]) == expected_output(PROMPTS["a"], 6)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), overlap=st.booleans())
def test_updates_at_any_time(data, overlap):
    """Spans are whole and rise, nothing of other weights is found, and no page is lost."""
    core, _ = make_core(num_pages=24, max_running=2, overlap=overlap)
    free = core.scheduler.pool.num_free
    recorders, version, begun = {}, 0, {}
    for turn in range(data.draw(st.integers(1, 6))):
        rid = f"{data.draw(st.sampled_from('abc'))}{turn}"
        prompt, length = PROMPTS[rid[0]], data.draw(st.integers(1, 9))
        recorders[rid], begun[rid] = Recorder(), version
        core.add(make_submission(rid, prompt, length), recorders[rid])
        for _ in range(data.draw(st.integers(0, 5))):
            core.step()
            check_invariants(core.scheduler)
        mode = data.draw(st.sampled_from(["recompute", "keep", "abort"]))
        core.stop(mode, lambda: None)
        version += 1
        core.renew_weights(version)
        core.go_on()
    run_to_end(core)
    for rid, recorder in recorders.items():
        output = recorder.outputs[-1]
        ends = [0, *(span.end for span in output.weights_versions)]
        assert [span.start for span in output.weights_versions] == ends[:-1]
        assert ends[-1] == len(output.token_ids)
        labels = [span.version for span in output.weights_versions]
        assert labels == sorted(set(labels))
        assert all(label >= begun[rid] for label in labels)
        assert output.weights_version == (labels[-1] if labels else output.weights_version)
    found = Recorder()
    core.renew_weights(version + 1)
    core.add(make_submission("new", PROMPTS["a"], 2), found)
    run_to_end(core)
    assert found.outputs[-1].cached_tokens == 0
    core.scheduler.cache.flush()
    assert core.scheduler.pool.num_free == free
