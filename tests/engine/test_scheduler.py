"""The scheduler with a fake runner: every schedule must give the tokens that a lone request would get."""

from __future__ import annotations

import itertools
from array import array

import numpy as np
import pytest
from fake_runner import Recorder, expected_output, make_core, make_submission, run_to_end
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rootlet.engine.schedule.batch import StepResult
from rootlet.engine.schedule.invariants import check_invariants
from rootlet.engine.steps.batch_layout import lay_out

PREFIX = list(range(50))


def run_all(core, submissions):
    recorders = {s.request.rid: Recorder() for s in submissions}
    for submission in submissions:
        core.add(submission, recorders[submission.request.rid])
    run_to_end(core, readers=list(recorders.values()))
    return recorders


def outputs_of(recorders):
    return {rid: list(recorder.outputs[-1].token_ids) for rid, recorder in recorders.items()}


PROMPTS = [
    PREFIX + [7, 8, 9],
    PREFIX + [7, 8, 1],
    PREFIX[:13],
    [3],
    list(range(90, 20, -1)),
    PREFIX + [7, 8, 9],
    [5, 5, 5, 5, 5, 5, 5, 5],
]


def check_setting(*, tokens, page_size, **options):
    core, _ = make_core(num_pages=tokens // page_size + 1, page_size=page_size, **options)
    submissions = [make_submission(str(i), prompt, 5 + i) for i, prompt in enumerate(PROMPTS)]
    expected = {str(i): expected_output(prompt, 5 + i) for i, prompt in enumerate(PROMPTS)}
    assert outputs_of(run_all(core, submissions)) == expected


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("page_size", [1, 4, 16])
def test_every_setting_gives_the_same_tokens(page_size, overlap):
    for chunk, cache, tokens, running in itertools.product((1, 7, None), (True, False), (400, 96), (1, 8)):
        check_setting(
            tokens=tokens, page_size=page_size, chunk=chunk, cache=cache, max_running=running, overlap=overlap
        )


@pytest.mark.parametrize("policy", ["lpm", "dfs-weight", "fcfs", "lof", "random"])
def test_the_policy_changes_the_order_only(policy):
    for tokens, running in itertools.product((400, 96), (2, 8)):
        check_setting(tokens=tokens, page_size=4, chunk=16, max_running=running, policy=policy)


def test_a_shared_prefix_is_computed_once():
    prefix = [i % 97 for i in range(1000)]
    for page_size, overlap in itertools.product((1, 16), (False, True)):
        core, runner = make_core(
            num_pages=3000 // page_size, page_size=page_size, max_running=256, chunk=512, overlap=overlap,
            max_prefill_tokens=4096,
        )  # fmt: skip
        submissions = [make_submission(str(i), [*prefix, i % 97, i // 97, 5], 2) for i in range(256)]
        recorders = run_all(core, submissions)
        cached = sorted(recorder.outputs[-1].cached_tokens for recorder in recorders.values())
        assert cached[0] == 0
        assert all(count >= 1000 for count in cached[1:])
        # one prefix, three own tokens each and one decode step each (the last token's KV is not needed)
        assert runner.num_computed <= 1000 + 256 * 3 + 256


@pytest.mark.parametrize("page_size", [1, 4, 16])
def test_a_repeated_prompt_is_cached_to_the_last_token(page_size):
    core, runner = make_core(page_size=page_size, num_pages=300)
    first = run_all(core, [make_submission("a", PREFIX)])
    before = runner.num_computed
    again = run_all(core, [make_submission("b", PREFIX)])
    assert again["b"].outputs[-1].cached_tokens == len(PREFIX) - 1
    assert outputs_of(first)["a"] == outputs_of(again)["b"]
    assert runner.num_computed - before == 8  # one prompt token and seven outputs


def test_keys_stand_for_a_prompt_in_the_cache():
    """Prompts of equal ids share what was computed as far as their keys do, and outputs follow behind."""
    core, _ = make_core(page_size=4, num_pages=300)
    keys = [array("i", values) for values in ([-5] * 50, [-5] * 30 + [-6] * 20)]
    cached = []
    for i, key in enumerate([keys[0], keys[0], keys[1], None]):
        submission = make_submission(str(i), PREFIX, 6)
        submission.request.prompt_keys = key
        recorders = run_all(core, [submission])
        assert outputs_of(recorders)[str(i)] == expected_output(PREFIX, 6)
        cached.append(recorders[str(i)].outputs[-1].cached_tokens)
    assert cached == [0, 49, 30, 0]
    longer = make_submission("longer", PREFIX + expected_output(PREFIX, 6) + [7])
    longer.request.prompt_keys = keys[0] + longer.request.token_ids[50:]
    assert run_all(core, [longer])["longer"].outputs[-1].cached_tokens == 55


def test_a_conversation_continues_from_its_own_output():
    core, _ = make_core(page_size=4, num_pages=300)
    answer = outputs_of(run_all(core, [make_submission("a", PREFIX, 10)]))["a"]
    follow_up = run_all(core, [make_submission("b", PREFIX + answer + [1, 2, 3])])
    # the KV of the last sampled token was never computed
    assert follow_up["b"].outputs[-1].cached_tokens == len(PREFIX) + 9


def test_preemption_happens_and_changes_nothing():
    core, _ = make_core(num_pages=20, page_size=4, chunk=16)  # 76 tokens of room
    submissions = [make_submission(str(i), [i] * 12, 30) for i in range(5)]
    outputs = outputs_of(run_all(core, submissions))
    assert core.scheduler.stats.num_preemptions > 0
    assert outputs == {str(i): expected_output([i] * 12, 30) for i in range(5)}


def test_the_oldest_running_request_is_never_preempted():
    core, _ = make_core(num_pages=20, page_size=4, chunk=16)
    submissions = [make_submission(str(i), [i] * 12, 30) for i in range(5)]
    run_all(core, submissions)
    assert submissions[0].request.num_preemptions == 0


def test_decoding_goes_on_beside_a_long_prefill():
    core, runner = make_core(num_pages=200, page_size=4, chunk=8)
    talker, reader = Recorder(), Recorder()
    core.add(make_submission("talker", [1, 2, 3], 40), talker)
    core.step()
    core.add(make_submission("reader", [i % 97 for i in range(160)], 1), reader)
    for _ in range(10):
        core.step()
    for batch in runner.batches[1:]:
        assert "talker" in [row.request.rid for row in batch.rows]
        assert sum(row.num_tokens for row in batch.rows) <= 8 + 1


@pytest.mark.parametrize(("stream", "expected"), [(True, {32}), (False, {64})])
def test_prompts_take_small_steps_beside_a_stream(stream, expected):
    core, runner = make_core(num_pages=400, page_size=4, chunk=64, stream_prefill_size=32)
    core.add(make_submission("talker", [1, 2, 3], 60, stream=stream), Recorder())
    core.step()
    core.add(make_submission("reader", [i % 97 for i in range(64)], 1), Recorder())
    run_to_end(core)
    sizes = [batch.num_tokens - batch.num_decodes for batch in runner.batches[1:]]
    assert {size for size in sizes if size} == expected


def test_steps_grow_with_what_waits_beside_a_stream():
    core, runner = make_core(num_pages=800, page_size=4, chunk=64, stream_prefill_size=8, max_running=64)
    core.add(make_submission("talker", [1, 2, 3], 60, stream=True), Recorder())
    core.step()
    for i in range(20):
        core.add(make_submission(f"reader {i}", [i + j % 7 for j in range(64)], 1), Recorder())
    run_to_end(core)
    sizes = [batch.num_tokens - batch.num_decodes for batch in runner.batches[1:]]
    # half of what waits, 1280 tokens at first, within the two limits
    assert sizes[:18] == [64] * 18
    assert set(sizes[18:]) != {64}
    assert min(size for size in sizes if size) <= 8
    assert max(sizes) == 64


def test_even_steps_count_decodes_against_the_prompt_tokens():
    core, runner = make_core(num_pages=400, page_size=4, chunk=16, even_steps=True, max_running=64)
    for i in range(3):
        core.add(make_submission(f"talker {i}", [i + 1], 60), Recorder())
    core.step()
    core.add(make_submission("reader", [i % 97 for i in range(160)], 1), Recorder())
    run_to_end(core)
    sizes = [batch.num_tokens for batch in runner.batches if batch.num_decodes < batch.num_rows]
    assert set(sizes[:-1]) == {16}  # 3 decodes and 13 prompt tokens


def test_even_steps_leave_prompts_half_of_a_step():
    core, runner = make_core(num_pages=800, page_size=4, chunk=16, even_steps=True, max_running=64)
    for i in range(40):
        core.add(make_submission(f"talker {i}", [i + 1], 60), Recorder())
    for _ in range(8):
        core.step()
    core.add(make_submission("reader", [i % 97 for i in range(160)], 1), Recorder())
    run_to_end(core)
    assert max(row.num_tokens for batch in runner.batches for row in batch.rows) == 8


def test_even_steps_do_not_shift_the_chunks_of_the_next_prompt():
    """A prompt's last chunk of one token is no decode: it must not cost the next prompt a token a step."""
    core, runner = make_core(num_pages=400, page_size=4, chunk=16, even_steps=True)
    for name, length in enumerate((33, 64, 64)):
        core.add(make_submission(str(name), [10 * name + i % 7 for i in range(length)], 1), Recorder())
        run_to_end(core)
    assert [batch.num_tokens for batch in runner.batches] == [16, 16, 1, *[16] * 4, *[16] * 4]


def test_whole_prompts_are_not_cut_without_chunking():
    core, runner = make_core(num_pages=200, chunk=None, max_prefill_tokens=64)
    lengths = [100, 30, 30, 30]
    run_all(core, [make_submission(str(n), [n] * length) for n, length in enumerate(lengths)])
    prefills = [[r.num_tokens for r in b.rows if r.num_tokens > 1] for b in runner.batches]
    assert [p for p in prefills if p] == [[100], [30, 30], [30]]


def test_a_long_prompt_is_not_overtaken_forever():
    """Newcomers with a cached prefix keep arriving; lpm alone would serve them for ever."""
    core, _ = make_core(num_pages=400, page_size=4, max_running=1, chunk=64)
    run_all(core, [make_submission("warm", PREFIX)])
    loner = Recorder()
    core.add(make_submission("busy", PREFIX + [0], 4), Recorder())
    core.add(make_submission("loner", [i % 97 for i in range(60, 160)], 4), loner)
    for i in range(2000):
        core.add(make_submission(f"n{i}", PREFIX + [i % 97, i // 97], 1), Recorder())
        core.step()
        if loner.ends:
            break
    assert loner.ends == 1


def test_prompt_scores_survive_chunks_cache_and_preemption():
    for chunk, pages, start in itertools.product((1, 7, 64), (300, 22), (0, 3, 30)):
        core, _ = make_core(num_pages=pages, page_size=4, chunk=chunk)
        run_all(core, [make_submission("warm", PREFIX)])
        submissions = [make_submission(str(i), PREFIX + [i], 12, prompt_start=start) for i in range(3)]
        recorders = run_all(core, submissions)
        for i in range(3):
            scored = submissions[i].request.collected.prompt_logprobs
            assert [t.logprob for t in scored] == [-float(p) for p in range(max(start - 1, 0), 50)]
            assert [t.token_id for t in scored] == (PREFIX + [i])[max(start, 1) :]
            assert recorders[str(i)].outputs[-1].cached_tokens <= start


def test_stop_tokens_and_length_reasons():
    prompt = [4, 4, 4]
    full = expected_output(prompt, 20)
    core, _ = make_core(overlap=True)
    stop = frozenset([full[6]])
    recorders = run_all(
        core, [make_submission("s", prompt, 20, stop_ids=stop), make_submission("l", [4, 4], 3)]
    )
    out = recorders["s"].outputs[-1]
    assert out.finish_reason == {"type": "stop", "matched": full[6]}
    assert list(out.token_ids) == expected_output(prompt, 20, stop)
    assert recorders["l"].outputs[-1].finish_reason == {"type": "length", "length": 3}


def test_length_wins_over_a_stop_token_at_the_same_place():
    full = expected_output([4, 4, 4], 5)
    core, _ = make_core()
    recorders = run_all(
        core, [make_submission("s", [4, 4, 4], 5, stop_ids=frozenset([full[4]]) - set(full[:4]))]
    )
    assert recorders["s"].outputs[-1].finish_reason == {"type": "length", "length": 5}


def test_zero_new_tokens_still_samples_one():
    core, _ = make_core()
    out = run_all(core, [make_submission("z", [1, 2, 3], 0)])["z"].outputs[-1]
    assert out.completion_tokens == 1
    assert out.finish_reason == {"type": "length", "length": 0}


@pytest.mark.parametrize("chunk", [1, 7, None])
def test_the_columns_of_a_batch_agree_with_its_rows(chunk):
    core, runner = make_core(num_pages=22, page_size=4, chunk=chunk, overlap=True)
    run_all(core, [make_submission(str(i), prompt, 12) for i, prompt in enumerate(PROMPTS)])
    assert core.scheduler.stats.num_preemptions > 0
    kinds = set()
    for batch in runner.batches:
        rows, n = batch.rows, len(batch.decodes.requests)
        kinds.add((n > 0, len(rows) > n, batch.num_decodes > n))
        assert len(rows) == batch.num_rows
        assert sum(row.num_tokens for row in rows) == batch.num_tokens
        assert all(row.samples and row.num_tokens == 1 and row.score is None for row in rows[:n])
        assert [row.num_tokens == 1 for row in rows] == [i < batch.num_decodes for i in range(len(rows))]
        assert batch.sampling_requests == [row.request for row in batch.rows if row.samples]
        layout = lay_out(batch)
        for column, values in zip(list(zip(*rows))[1:5], (layout.slots, layout.starts, layout.counts)):
            assert values.dtype == np.int32
            assert values.tolist() == list(column)
        assert layout.samples.tolist() == [row.samples for row in rows]
    assert {(True, False, False), (True, True, chunk == 1), (False, True, chunk == 1)} <= kinds


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("page_size", [1, 4, 16])
def test_nothing_is_computed_behind_the_last_token(page_size, overlap):
    for length, count in itertools.product((15, 16, 17), (1, 2, 15, 16, 17, 18)):
        core, runner = make_core(page_size=page_size, num_pages=300, overlap=overlap)
        run_all(core, [make_submission("a", list(range(length)), count)])
        assert runner.num_computed == length + count - 1


def test_a_commit_reports_those_that_ended_or_are_watched():
    core, _ = make_core(chunk=64)
    submissions = [
        make_submission("long", [1, 2], 9),
        make_submission("short", [3, 4], 2),
        make_submission("watched", [5, 6], 9),
        make_submission("aborted", [7, 8], 9),
    ]
    requests = [submission.request for submission in submissions]
    recorders = [Recorder() for _ in submissions]
    for submission, recorder in zip(submissions, recorders):
        core.add(submission, recorder)
    requests[2].is_watched = True
    scheduler = core.scheduler
    first, second = scheduler.schedule(), scheduler.schedule()
    assert scheduler.commit(first, StepResult([10, 11, 12, 13])) == [requests[2]]
    scheduler.abort(requests[3], "enough")
    logprobs = [b"-1.0 of 20", None, None, b"-2.0 of 23"]
    assert scheduler.commit(second, StepResult([20, 21, 22, 23], logprobs)) == requests[1:3]
    assert [r.output_ids for r in requests] == [[10, 20], [11, 21], [12, 22], [13]]
    assert [r.collected.output_logprobs for r in requests] == [logprobs[:1], [], [], []]
    assert scheduler.stats.num_generated_tokens == 7
    assert scheduler.stats.num_finished == 2
    assert [r.is_finished for r in requests] == [False, True, False, True]
    check_invariants(scheduler)


@pytest.mark.parametrize("overlap", [False, True])
def test_a_stream_hears_every_token_and_the_rest_only_the_end(overlap):
    core, _ = make_core(overlap=overlap)
    recorders = run_all(
        core, [make_submission("s", [1, 2, 3], 6, stream=True), make_submission("q", [1, 2, 3], 6)]
    )
    assert [out.completion_tokens for out in recorders["s"].outputs] == [1, 2, 3, 4, 5, 6]
    assert [out.completion_tokens for out in recorders["q"].outputs] == [6]


def test_a_failing_step_reaches_every_waiter():
    core, runner = make_core()
    runner.fail_at_step = 2
    recorders = [Recorder() for _ in range(3)]
    for i, recorder in enumerate(recorders):
        core.add(make_submission(str(i), [i] * 20), recorder)
    with pytest.raises(ArithmeticError) as caught:
        run_to_end(core)
    core.fail_all(caught.value)
    assert all(recorder.errors == [caught.value] for recorder in recorders)


def test_a_running_rid_is_refused_a_second_time():
    core, _ = make_core()
    first, second = Recorder(), Recorder()
    core.add(make_submission("same", [1, 2]), first)
    core.add(make_submission("same", [1, 2]), second)
    assert "still running" in str(second.errors[0])
    run_to_end(core)
    assert first.ends == 1
    assert first.outputs[-1].finish_reason["type"] == "length"


events = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 45), st.integers(0, 20), st.integers(0, 12), st.booleans()),
        st.tuples(st.just("step"), st.integers(1, 4)),
        st.tuples(st.just("abort"), st.integers(0, 30)),
        st.tuples(st.just("flush")),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    events=events,
    page_size=st.sampled_from([1, 2, 4, 16]),
    room=st.integers(60, 200),
    chunk=st.sampled_from([1, 5, 32, None]),
    running=st.integers(1, 6),
    policy=st.sampled_from(["lpm", "dfs-weight", "fcfs", "lof", "random"]),
    cache=st.booleans(),
    overlap=st.booleans(),
    even_steps=st.booleans(),
)
def test_any_history_ends_every_request_once_and_right(
    events, page_size, room, chunk, running, policy, cache, overlap, even_steps
):
    """Random arrivals, aborts and flushes in tiny pools; invariants after every step."""
    core, _ = make_core(
        num_pages=-(-room // page_size) + 1, page_size=page_size, chunk=chunk, max_running=running,
        policy=policy, cache=cache, overlap=overlap, max_prefill_tokens=32, even_steps=even_steps,
    )  # fmt: skip
    history = []
    for event in events:
        if event[0] == "add":
            _, shared, own, new, scored = event
            prompt = PREFIX[:shared] + [(own * 31 + i) % 97 for i in range(own)] or [1]
            if len(prompt) + new > room:
                continue
            submission = make_submission(str(len(history)), prompt, new, prompt_start=0 if scored else None)
            history.append((submission, prompt, new, Recorder()))
            core.add(submission, history[-1][3])
        elif event[0] == "abort" and event[1] < len(history):
            core.abort(str(event[1]))
        elif event[0] == "step":
            for _ in range(event[1]):
                core.step()
                check_invariants(core.scheduler)
        elif event[0] == "flush" and not core.has_work:
            core.scheduler.cache.flush()
        check_invariants(core.scheduler)
    run_to_end(core)
    for submission, prompt, new, recorder in history:
        assert recorder.ends == 1
        out = recorder.outputs[-1]
        expected = expected_output(prompt, max(new, 1))
        if out.finish_reason["type"] == "abort":
            assert list(out.token_ids) == expected[: out.completion_tokens]
        else:
            assert list(out.token_ids) == expected
            if submission.request.logprobs is not None:
                assert len(submission.request.collected.prompt_logprobs) == len(prompt) - 1
    scheduler = core.scheduler
    assert scheduler.cache.num_locked == 0
    scheduler.cache.flush()
    assert scheduler.pool.num_free == scheduler.pool.num_pages - 1
    assert scheduler.slots.num_free == running
