"""The host's own code on the engine's thread: callbacks, logit processors, logging handlers."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import textwrap
import threading

import pytest

import rootlet
from rootlet.errors import (
    EngineClosedError,
    EngineFailedError,
    EngineThreadError,
    InvalidRequestError,
    JobError,
    LogitProcessorError,
)

GREEDY = {"temperature": 0, "max_new_tokens": 6, "ignore_eos": True}
ENDLESS = GREEDY | {"max_new_tokens": 400}
PROMPT = [5, 9, 3]
ARGS = {"input_ids": PROMPT, "sampling_params": GREEDY}


class Odd(BaseException):
    """Nobody's usual exception."""


RAISED = [
    SystemExit(3),
    KeyboardInterrupt(),
    GeneratorExit(),
    asyncio.CancelledError(),
    Odd(),
    StopIteration(),
]


def build(model, **options):
    options = {"max_total_tokens": 4096, "dtype": "float32"} | options
    return rootlet.Engine(model, load_format="dummy", skip_tokenizer_init=True, **options)


@pytest.fixture(scope="module", params=[False, True], ids=["thread", "by_hand"])
def engine(request, tiny_model):
    with build(tiny_model, step_by_hand=request.param) as engine:
        yield engine


def waiting_calls(engine, other):
    """Everything that waits for the engine, by name; ``other`` is a request that runs."""

    async def awaited():
        await other

    async def iterated():
        async for _ in other:
            pass

    return {
        "generate": lambda: engine.generate(**ARGS),
        "async_generate": lambda: asyncio.run(engine.async_generate(**ARGS)),
        "progress": lambda: engine.generate(**ARGS, progress=True),
        "score": lambda: engine.score(PROMPT, [[7]]),
        "stats": engine.stats,
        "flush_cache": engine.flush_cache,
        "start_profile": engine.start_profile,
        "stop_profile": engine.stop_profile,
        "result": other.result,
        "result with a timeout": lambda: other.result(60),
        "for": lambda: list(other),
        "await": lambda: asyncio.run(awaited()),
        "async for": lambda: asyncio.run(iterated()),
    } | ({"step": engine.step} if engine.config.step_by_hand else {})


def outcomes(calls):
    """What each call raised, by name."""
    raised = {}
    for name, call in calls.items():
        try:
            call()
        except Exception as error:
            raised[name] = type(error)
        else:
            raised[name] = None
    return raised


def test_what_would_wait_raises_in_a_done_callback(engine):
    found = {}
    with_others = [engine.submit(input_ids=[8, i], sampling_params=ENDLESS) for i in range(5, 10)]
    other = engine.submit(input_ids=PROMPT, sampling_params=ENDLESS)
    handle = engine.submit(**ARGS)
    handle.add_done_callback(lambda _: found.update(outcomes(waiting_calls(engine, other))))
    assert handle.result(60).completion_tokens == 6
    engine.stats()  # not before the callback has returned
    assert found
    assert set(found.values()) == {EngineThreadError}, found
    for each in [*with_others, other]:  # a reader that cannot wait leaves, which aborts what it reads
        each.abort()
        assert each.result(60).finish_reason["type"] in ("abort", "length")
    assert engine.generate(**ARGS).completion_tokens == 6


def test_what_would_wait_raises_in_a_logit_processor(engine):
    found = {}
    other = engine.submit(input_ids=PROMPT, sampling_params=ENDLESS)

    def processor(logits, params):
        found.update(found or outcomes(waiting_calls(engine, other)))
        return logits

    assert engine.generate(**ARGS, custom_logit_processor=processor).completion_tokens == 6
    other.abort()
    assert set(found.values()) == {EngineThreadError}, found


def test_a_job_in_a_done_callback_is_refused(engine, tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text('{"prompt": "x"}\n')
    found = {}

    def run(handle):
        with pytest.raises(rootlet.errors.RootletError) as caught:
            rootlet.run_jobs(source, tmp_path / "out.jsonl", engine=engine, progress=False)
        found["error"] = caught.type

    handle = engine.submit(**ARGS)
    handle.add_done_callback(run)
    handle.result(60)
    engine.stats()
    assert found["error"] is (JobError if engine.config.step_by_hand else EngineThreadError)
    assert list(tmp_path.iterdir()) == [source]


def test_what_only_posts_works_in_a_done_callback(engine):
    more = []

    def callback(handle):
        assert handle.result().completion_tokens == 6  # it is there: nothing to wait for
        more.append(engine.submit(**ARGS))
        more.append(engine.submit(input_ids=PROMPT, sampling_params=ENDLESS))
        more[1].abort()
        stream = engine.generate(input_ids=PROMPT, sampling_params=ENDLESS, stream=True)
        stream.close()

    handle = engine.submit(**ARGS)
    handle.add_done_callback(callback)
    first = handle.result(60)
    engine.stats()
    assert more[0].result(60).token_ids == first.token_ids
    assert more[1].result(60).finish_reason["type"] == "abort"
    assert engine.stats().num_running == 0


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
def test_whatever_a_callback_raises_harms_nobody(engine, error, caplog):
    if engine.config.step_by_hand and isinstance(error, KeyboardInterrupt):
        pytest.skip("in the main thread that is Ctrl-C, which ends an engine driven by hand")

    def fails(handle):
        raise error

    called = []
    other = engine.submit(input_ids=[7, 7], sampling_params=GREEDY | {"max_new_tokens": 40})
    watched = engine.submit(**ARGS)
    watched.watch(fails)
    handle = engine.submit(**ARGS)
    handle.add_done_callback(fails)
    handle.add_done_callback(called.append)
    assert handle.result(60).token_ids == watched.result(60).token_ids
    assert other.result(60).completion_tokens == 40
    engine.stats()
    assert called == [handle]
    assert type(error).__name__ in caplog.text


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
def test_whatever_a_processor_raises_ends_its_request_only(engine, error):
    if engine.config.step_by_hand and isinstance(error, KeyboardInterrupt):
        pytest.skip("in the main thread that is Ctrl-C, which ends an engine driven by hand")

    def fails(logits, params):
        raise error

    other = engine.submit(input_ids=[7, 7], sampling_params=GREEDY)
    with pytest.raises(LogitProcessorError, match=type(error).__name__) as caught:
        engine.generate(**ARGS, custom_logit_processor=fails)
    assert caught.value.__cause__ is error
    assert other.result(60).completion_tokens == 6


def test_coroutine_functions_are_no_callbacks(engine):
    async def callback(handle):
        pass

    handle = engine.submit(**ARGS)
    for wrong in (callback, 5):
        with pytest.raises(InvalidRequestError, match="plain function"):
            handle.add_done_callback(wrong)
    handle.result(60)


@pytest.mark.parametrize("by_hand", [False, True], ids=["thread", "by_hand"])
def test_close_in_a_callback_ends_the_engine_after_the_step(tiny_model, by_hand):
    engine = build(tiny_model, step_by_hand=by_hand)
    release, released = engine._loop._release, []
    engine._loop._release = lambda: (release(), released.append(threading.get_ident()))
    handle = engine.submit(**ARGS)
    handle.add_done_callback(lambda _: engine.close())
    other = engine.submit(input_ids=PROMPT, sampling_params=ENDLESS)
    assert handle.result(60).completion_tokens == 6
    with pytest.raises(EngineClosedError):
        other.result(60)
    engine.close()
    assert len(released) == 1
    assert (released[0] == threading.get_ident()) == by_hand


def test_exit_after_closing_or_dropping_an_engine_in_its_own_callback(tiny_model):
    script = f"""
    import threading, rootlet
    def build():
        return rootlet.Engine({tiny_model!r}, load_format="dummy", skip_tokenizer_init=True)
    def run(engine, tokens):
        params = {{"max_new_tokens": tokens, "ignore_eos": True}}
        return engine.submit(input_ids=[5, 6], sampling_params=params)
    ended = [threading.Event(), threading.Event()]
    closed = build()
    run(closed, 400)
    run(closed, 3).add_done_callback(lambda _: (closed.close(), ended[0].set()))
    dropped = [build()]
    run(dropped[0], 400)
    run(dropped[0], 3).add_done_callback(lambda _: (dropped.clear(), ended[1].set()))
    for event in ended:
        event.wait(60)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, b"")


class Spiteful(logging.Handler):
    """A handler that treats every record as its own misfortune."""

    def emit(self, record):
        raise Odd


def test_every_waiter_hears_of_the_end_whoever_raises(tiny_model):
    """Callbacks that exit, a logging handler that raises, an event loop that is gone: none hides the end."""
    engine = build(tiny_model, decode_log_interval=1)
    loop = engine._loop
    release, released = loop._release, []
    loop._release = lambda: (release(), released.append(True))
    launched, submitted = threading.Event(), threading.Event()

    def launch(batch):
        launched.set()
        assert submitted.wait(60)
        raise Odd

    loop._core.runner.launch = launch
    handler = Spiteful()
    logging.getLogger("rootlet").addHandler(handler)
    try:
        handles = [engine.submit(**ARGS) for _ in range(4)]
        for handle in handles[:2]:
            handle.add_done_callback(lambda _: sys.exit(1))
        gone = asyncio.new_event_loop()

        async def begin():
            stream = handles[2].__aiter__()
            task = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0)
            return task, stream

        kept = gone.run_until_complete(begin())
        kept[0]._log_destroy_pending = False
        gone.close()
        stats = []
        assert launched.wait(60)  # what is asked before is answered
        asking = threading.Thread(target=lambda: stats.append(outcomes({"stats": engine.stats})))
        asking.start()
        while not loop._commands and not stats:
            pass
        submitted.set()
        for handle in handles:
            with pytest.raises(EngineFailedError) as caught:
                handle.result(60)
            assert isinstance(caught.value.__cause__, Odd)
        asking.join(60)
        loop._thread.join(60)
    finally:
        logging.getLogger("rootlet").removeHandler(handler)
    assert stats == [{"stats": EngineFailedError}]
    assert released == [True]


def test_a_logging_handler_that_raises_ends_no_step(tiny_model):
    handler, logger = Spiteful(), logging.getLogger("rootlet")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        with build(tiny_model, decode_log_interval=1) as engine:
            handle = engine.submit(**ARGS)
            handle.add_done_callback(lambda _: 1 / 0)
            assert handle.result(60).completion_tokens == 6
            assert engine.generate(**ARGS).completion_tokens == 6
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
