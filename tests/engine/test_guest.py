"""The engine as a guest in its host's process: what it may not touch, and what it must give back."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import weakref

import numpy as np
import pytest
import torch

import rootlet
from rootlet.engine.build import loading
from rootlet.errors import EngineClosedError, EngineFailedError

GREEDY = {"temperature": 0, "max_new_tokens": 12, "ignore_eos": True}
PROMPT = [5, 6, 7, 8, 9]


def build(model, **options):
    options = {"max_total_tokens": 4096, "dtype": "float32"} | options
    return rootlet.Engine(model, load_format="dummy", skip_tokenizer_init=True, **options)


def threads_since(before):
    """Threads that are there now and were not in ``before``; ended ones get a moment to go."""
    started = [thread for thread in threading.enumerate() if thread not in before]
    for thread in started:
        thread.join(10)
    return [thread for thread in started if thread.is_alive()]


def tensor_bytes():
    gc.collect()
    # type(): isinstance() would ask lazy module objects for their class
    tensors = [o for o in gc.get_objects() if issubclass(type(o), torch.Tensor)]
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


@pytest.fixture
def engine(tiny_model):
    with build(tiny_model) as engine:
        yield engine


@pytest.mark.parametrize("ending", ["close", "shutdown", "with", "del"])
def test_three_constructions_leave_nothing(tiny_model, ending):
    threads = threading.enumerate()

    def once():
        engine = build(tiny_model)
        core = weakref.ref(engine._loop._core)
        engine.generate(input_ids=PROMPT, sampling_params=GREEDY)
        if ending == "with":
            with engine:
                pass
        elif ending != "del":
            getattr(engine, ending)()
        del engine
        gc.collect()
        assert not threads_since(threads)
        assert core() is None

    once()
    before = tensor_bytes()
    for _ in range(3):
        once()
    assert tensor_bytes() == before


def test_an_engine_that_never_ran_frees_everything_too(tiny_model):
    before = tensor_bytes()
    engine = build(tiny_model)
    core = weakref.ref(engine._loop._core)
    del engine
    assert core() is None
    assert tensor_bytes() == before


def test_host_state_is_untouched(tiny_model):
    def state():
        return (
            random.getstate(),
            str(np.random.get_state()),
            torch.random.get_rng_state().tolist(),
            torch.get_default_dtype(),
            torch.get_num_threads(),
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            dict(os.environ),
            {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)},
            (list(logging.root.handlers), logging.root.level),
            [name for name, logger in logging.root.manager.loggerDict.items()
             if name.startswith("rootlet") and isinstance(logger, logging.Logger)
             and (logger.handlers or logger.level or not logger.propagate)],
            sys.getrecursionlimit(),
            gc.get_threshold(),
        )  # fmt: skip

    before = state()
    with build(tiny_model) as engine:
        engine.generate(input_ids=[PROMPT, PROMPT], sampling_params={"temperature": 1.0, "top_p": 0.9})
    assert state() == before


def test_importing_and_running_starts_no_process_and_prints_nothing(tiny_model):
    script = f"""
    import rootlet, os
    engine = rootlet.Engine(
        {tiny_model!r}, load_format="dummy", skip_tokenizer_init=True, max_total_tokens=512
    )
    engine.generate(input_ids=[1, 2, 3], sampling_params={{"max_new_tokens": 4}})
    children = open(f"/proc/self/task/{{os.getpid()}}/children").read()
    assert children == "", children
    """
    # no __main__ guard, no close(): the script must end by itself
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout == done.stderr == b""


def test_two_engines_live_side_by_side(tiny_model):
    with build(tiny_model) as alone:
        expected = [alone.generate(input_ids=[i, 9, 9], sampling_params=GREEDY).token_ids for i in range(6)]
    with build(tiny_model) as one, build(tiny_model, page_size=1, chunked_prefill_size=2) as two:
        handles = [
            engine.submit(input_ids=[i, 9, 9], sampling_params=GREEDY)
            for i in range(6)
            for engine in (one, two)
        ]
        got = [handle.result(60).token_ids for handle in handles]
    assert got == [tokens for tokens in expected for _ in range(2)]


def test_many_threads_share_one_engine(engine):
    expected = {i: engine.generate(input_ids=[i, 3], sampling_params=GREEDY).token_ids for i in range(16)}
    got = {}

    def work(i):
        got[i] = engine.generate(input_ids=[i, 3], sampling_params=GREEDY).token_ids

    threads = [threading.Thread(target=work, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == expected


def test_built_in_another_thread(tiny_model):
    box = []

    def work():
        with build(tiny_model) as engine:
            box.append(engine.generate(input_ids=PROMPT, sampling_params=GREEDY).completion_tokens)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert box == [12]


def test_inside_a_running_event_loop(engine):
    expected = engine.generate(input_ids=PROMPT, sampling_params=GREEDY).token_ids

    async def main():
        assert (
            engine.generate(input_ids=PROMPT, sampling_params=GREEDY).token_ids == expected
        )  # as in Jupyter
        ticks = 0

        async def tick():
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        ticker = asyncio.ensure_future(tick())
        one = await engine.async_generate(input_ids=PROMPT, sampling_params=GREEDY)
        many = await asyncio.gather(
            *(engine.async_generate(input_ids=PROMPT, sampling_params=GREEDY) for _ in range(5))
        )
        stream = await engine.async_generate(input_ids=PROMPT, sampling_params=GREEDY, stream=True)
        chunks = [chunk async for chunk in stream]
        handle = engine.submit(input_ids=PROMPT, sampling_params=GREEDY)
        awaited = await handle
        ticker.cancel()
        assert ticks > 10
        assert {o.token_ids for o in (one, *many, chunks[-1], awaited)} == {expected}
        assert all(b.token_ids[: len(a.token_ids)] == a.token_ids for a, b in itertools.pairwise(chunks))

    asyncio.run(main())


def test_cancelling_a_task_aborts_its_request(engine):
    async def main():
        task = asyncio.ensure_future(
            engine.async_generate(input_ids=PROMPT, sampling_params=GREEDY | {"max_new_tokens": 500})
        )
        while not engine.stats().num_running:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    while engine.stats().num_running:
        pass
    assert engine.stats().num_finished == 1


def test_leaving_a_stream_early_aborts_it(engine):
    stream = engine.generate(input_ids=PROMPT, sampling_params=GREEDY | {"max_new_tokens": 500}, stream=True)
    first = next(stream)
    stream.close()
    assert first.finish_reason is None
    while engine.stats().num_running:
        pass
    assert engine.generate(input_ids=PROMPT, sampling_params=GREEDY).completion_tokens == 12


def test_ctrl_c_aborts_the_call_and_the_next_one_is_clean(engine):
    expected = engine.generate(input_ids=PROMPT, sampling_params=GREEDY).token_ids
    engine.flush_cache()

    def interrupt():
        while not engine.stats().num_running:
            pass
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        engine.generate(input_ids=[PROMPT] * 3, sampling_params=GREEDY | {"max_new_tokens": 500})
    again = engine.generate(input_ids=PROMPT, sampling_params=GREEDY)
    assert again.token_ids == expected
    while engine.stats().num_running:
        pass


def test_ctrl_c_stops_an_engine_under_construction(tiny_model, monkeypatch):
    threads, before = threading.enumerate(), tensor_bytes()
    interrupted = threading.Event()
    load_model = loading.load_model

    def load(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupted.wait(60)
        return load_model(*args, **kwargs)

    monkeypatch.setattr(loading, "load_model", load)
    with pytest.raises(KeyboardInterrupt):
        build(tiny_model)
    interrupted.set()
    assert not threads_since(threads)
    assert tensor_bytes() == before


def test_close_wakes_the_waiting(tiny_model):
    engine = build(tiny_model)
    handles = [
        engine.submit(input_ids=PROMPT, sampling_params=GREEDY | {"max_new_tokens": 500}) for _ in range(3)
    ]
    engine.close()
    for handle in handles:
        with pytest.raises(EngineClosedError):
            handle.result(10)
    engine.close()
    for call in (
        lambda: engine.generate(input_ids=PROMPT),
        engine.flush_cache,
        engine.stats,
        engine.__enter__,
    ):
        with pytest.raises(EngineClosedError):
            call()
    assert "closed" in repr(engine)


def test_a_failing_step_fails_everybody_and_says_why(tiny_model):
    threads = threading.enumerate()
    engine = build(tiny_model)
    submitted = threading.Event()

    def launch(batch):
        assert submitted.wait(30)
        raise ArithmeticError("the step cannot work")

    engine._loop._core.runner.launch = launch
    handles = [engine.submit(input_ids=PROMPT) for _ in range(2)]
    submitted.set()
    for handle in handles:
        with pytest.raises(EngineFailedError) as caught:
            handle.result(30)
        assert isinstance(caught.value.__cause__, Exception)
    with pytest.raises(EngineFailedError):
        engine.generate(input_ids=PROMPT)
    assert not threads_since(threads)
    engine.close()


def test_a_done_callback_that_raises_harms_nobody(engine, caplog):
    handle = engine.submit(input_ids=PROMPT, sampling_params=GREEDY)
    handle.add_done_callback(lambda h: 1 / 0)
    called = []
    handle.add_done_callback(called.append)
    handle.result(30)
    assert engine.generate(input_ids=PROMPT, sampling_params=GREEDY).completion_tokens == 12
    assert called == [handle]


def test_abort_keeps_what_there_was(engine):
    handle = engine.submit(input_ids=PROMPT, sampling_params=GREEDY | {"max_new_tokens": 500})
    for chunk in handle:
        if chunk.completion_tokens >= 3 and chunk.finish_reason is None:
            handle.abort()
    out = handle.result()
    assert out.finish_reason["type"] == "abort"
    assert 3 <= out.completion_tokens < 500
    handle.abort()


def test_result_times_out_without_ending_the_request(engine):
    handle = engine.submit(input_ids=PROMPT, sampling_params=GREEDY | {"max_new_tokens": 400})
    with pytest.raises(TimeoutError):
        handle.result(timeout=0)
    assert handle.result().completion_tokens == 400


def test_driven_by_hand(tiny_model):
    with build(tiny_model) as threaded:
        expected = threaded.generate(input_ids=PROMPT, sampling_params=GREEDY).token_ids
        with pytest.raises(RuntimeError, match="step_by_hand"):
            threaded.step()
    threads = threading.enumerate()
    with build(tiny_model, step_by_hand=True) as engine:
        handle = engine.submit(input_ids=PROMPT, sampling_params=GREEDY)
        steps = 0
        while engine.step():
            steps += 1
        assert steps == 11
        assert handle.done()
        assert handle.result().token_ids == expected
        assert engine.generate(input_ids=PROMPT, sampling_params=GREEDY).token_ids == expected
        chunks = list(engine.generate(input_ids=PROMPT, sampling_params=GREEDY, stream=True))
        assert [c.completion_tokens for c in chunks] == list(range(1, 13))
        assert engine.flush_cache()
        assert threading.enumerate() == threads


def test_a_forked_child_gets_a_clear_error(tiny_model):
    script = f"""
    import os, warnings
    warnings.simplefilter("ignore")
    import rootlet
    engine = rootlet.Engine(
        {tiny_model!r}, load_format="dummy", skip_tokenizer_init=True, max_total_tokens=512
    )
    engine.generate(input_ids=[1, 2, 3], sampling_params={{"max_new_tokens": 4}})
    child = os.fork()
    if child == 0:
        try:
            engine.generate(input_ids=[1, 2, 3])
        except RuntimeError as error:
            os._exit(7 if "fork" in str(error) else 8)
        os._exit(9)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, timeout=120)
    assert done.stdout == b"7\n", done.stderr.decode()


def test_what_was_made_before_a_fork_raises_in_the_child(tiny_model, tmp_path):
    """Also while another thread holds every lock there is, which the child then inherits locked."""
    script = f"""
    import asyncio, contextlib, os, sys, threading, warnings
    warnings.simplefilter("ignore")
    import rootlet
    from rootlet.errors import EngineForkedError
    engine = rootlet.Engine(
        {tiny_model!r}, load_format="dummy", skip_tokenizer_init=True, max_total_tokens=2048
    )
    args = dict(input_ids=[1, 2, 3], sampling_params={{"max_new_tokens": 480, "ignore_eos": True}})
    ended = engine.submit(input_ids=[1, 2], sampling_params={{"max_new_tokens": 2}})
    ended.result()
    session = engine.open_session()
    engine.submit(**args, session_params={{"id": session}})
    handle, stream = engine.submit(**args), engine.generate(**args, stream=True)
    tasks = aiter(handle)
    held, forked = threading.Event(), threading.Event()

    def hold():
        locks = (engine._loop._condition, engine._loop.bells._lock, engine._sessions._lock)
        locks += (handle._lock, handle._looking)
        locks += (stream._news._lock, stream._sleep._condition, tasks._news._lock)
        with contextlib.ExitStack() as stack:
            for lock in locks:
                stack.enter_context(lock)
            held.set()
            forked.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    child = os.fork()
    if child == 0:
        async def awaited():
            await handle
        async def advanced():
            await anext(tasks)
        calls = dict(
            result=handle.result, iteration=lambda: list(handle), awaiting=lambda: asyncio.run(awaited()),
            task=lambda: asyncio.run(advanced()),
            abort=handle.abort, callback=lambda: handle.add_done_callback(print), stream=lambda: next(stream),
            generate=lambda: engine.generate(**args), submit=lambda: engine.submit(**args),
            asynchronous=lambda: asyncio.run(engine.async_generate(**args)), stats=engine.stats,
            flush=engine.flush_cache, open=engine.open_session, shut=lambda: engine.close_session(session),
            job=lambda: rootlet.run_jobs(sys.argv[1], sys.argv[2], engine=engine, progress=False),
            enter=engine.__enter__,
        )
        for name, call in calls.items():
            try:
                call()
            except EngineForkedError:
                continue
            print(name, "did not raise", flush=True)
        assert ended.result().completion_tokens == 2
        stream.close()
        engine.close()
        del stream, tasks, handle, engine
        sys.exit(7)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), handle.done())
    forked.set()
    holder.join()
    engine.close()
    """
    lines = tmp_path / "in.jsonl"
    lines.write_text('{"prompt": "a", "sampling_params": {"max_new_tokens": 1}}\n')
    command = [sys.executable, "-c", textwrap.dedent(script), str(lines), str(tmp_path / "out.jsonl")]
    done = subprocess.run(command, capture_output=True, timeout=120)
    assert done.stdout == b"7 False\n", done.stdout.decode() + done.stderr.decode()
    assert not (tmp_path / "out.jsonl").exists()
