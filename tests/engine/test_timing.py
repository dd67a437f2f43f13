"""Timing of requests: order and consistency of the stations, never durations."""

from __future__ import annotations

import json

import pytest
from fake_runner import Recorder, make_core, make_submission, run_to_end

import rootlet


def run(core, submissions):
    recorders = [Recorder() for _ in submissions]
    for submission, recorder in zip(submissions, recorders):
        core.add(submission, recorder)
    run_to_end(core)
    return [recorder.outputs[-1].timing for recorder in recorders]


def check(timing):
    assert 0 <= timing.queue_s <= timing.first_token_s <= timing.total_s
    assert timing.prefill_s >= 0
    assert timing.queue_s + timing.prefill_s == pytest.approx(timing.first_token_s)


@pytest.mark.parametrize("overlap", [False, True])
def test_stations_come_in_order(overlap):
    core, _ = make_core(num_pages=20, page_size=4, chunk=8, overlap=overlap)
    submissions = [make_submission(str(i), [i] * 12, length) for i, length in enumerate((30, 30, 30, 2, 1))]
    timings = run(core, submissions)
    assert core.scheduler.stats.num_preemptions > 0
    for timing in timings:
        check(timing)


def test_waiting_counts_as_queueing():
    core, _ = make_core(num_pages=64, max_running=1)
    submissions = [make_submission(str(i), [i] * 12, 8) for i in range(2)]
    timings = run(core, submissions)
    first, second = (submission.request.stamps for submission in submissions)
    assert second.scheduled >= first.finished  # one at a time: the second starts when the first ends
    assert timings[1].queue_s == second.scheduled - second.submitted


def test_the_first_admission_and_the_first_token_count():
    core, _ = make_core(num_pages=20, page_size=4, chunk=16)
    requests = [make_submission(str(i), [i] * 12, 30) for i in range(5)]
    for submission in requests:
        core.add(submission, Recorder())
    requests, seen = [submission.request for submission in requests], {}
    while core.has_work:
        core.step()
        for request in requests:
            for name in ("submitted", "scheduled", "first_token", "finished"):
                stamp = getattr(request.stamps, name)
                assert seen.setdefault((request.rid, name), stamp) in (stamp, None)
                seen[request.rid, name] = stamp
    assert any(request.num_preemptions for request in requests)


def test_an_aborted_request_has_the_stations_it_reached():
    core, _ = make_core(chunk=8, max_running=1)
    reading, queued = Recorder(), Recorder()
    core.add(make_submission("reading", list(range(40))), reading)
    core.add(make_submission("queued", [1]), queued)
    core.step()
    core.abort("reading")
    core.abort("queued")
    [timing] = [output.timing for output in reading.outputs]
    assert timing.first_token_s is timing.prefill_s is None
    assert 0 <= timing.queue_s <= timing.total_s
    [timing] = [output.timing for output in queued.outputs]
    assert timing.queue_s is timing.first_token_s is None
    assert timing.total_s >= 0


def test_only_final_outputs_carry_it(tiny_model):
    options = {"load_format": "dummy", "skip_tokenizer_init": True, "max_total_tokens": 320}
    params = {"temperature": 0, "max_new_tokens": 5, "ignore_eos": True}
    with rootlet.Engine(tiny_model, **options) as engine:
        chunks = list(engine.generate(input_ids=[4, 5], sampling_params=params, stream=True))
        again = engine.generate(input_ids=[4, 5], sampling_params=params, rid=chunks[-1].rid)
    assert [chunk.timing is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    check(chunks[-1].timing)
    assert chunks[-1]["meta_info"]["timing"] == chunks[-1].timing.as_dict()
    assert json.loads(json.dumps(again.as_dict()))["meta_info"]["timing"] == again.timing.as_dict()
    assert again.timing != chunks[-1].timing
    assert again.token_ids == chunks[-1].token_ids
