"""Counts of a request are bounded before anything is built; odd values end in errors of ours or an answer."""

from __future__ import annotations

import asyncio
import contextlib
import tracemalloc

import pytest

import rootlet
from rootlet.errors import InvalidParameterError, InvalidRequestError, RequestTooLongError, RootletError
from rootlet.sampling import limits

SHORT = {"max_new_tokens": 2}


@pytest.fixture(scope="module")
def engine(tiny_text_model):
    with rootlet.Engine(tiny_text_model, load_format="dummy", max_total_tokens=4096) as engine:
        yield engine


def everyway(engine, **arguments):
    """The calls that take these arguments, synchronous and not."""
    return (
        lambda: engine.generate(**arguments),
        lambda: engine.generate(**arguments, stream=True),
        lambda: engine.submit(**arguments),
        lambda: asyncio.run(engine.async_generate(**arguments)),
    )


HUGE = 2**31
TOO_MUCH = {
    "n": {"n": limits.MAX_SAMPLES + 1},
    "n beyond memory": {"n": HUGE},
    "n of many digits": {"n": 10**5000},
    "n as a float": {"n": 1e18},
    "stop strings": {"stop": ["x"] * (limits.MAX_STOPS + 1)},
    "long stop strings": {"stop": ["x" * limits.MAX_STOP_CHARS, "y"]},
    "biases times n": {"logit_bias": dict.fromkeys(range(2048), 1.0), "n": 1024},
    "stop tokens times n": {"stop_token_ids": range(2048), "n": 1024},
    "custom_params times n": {"custom_params": dict.fromkeys(range(2048)), "n": 1024},
    "min_new_tokens": {"min_new_tokens": 2**62, "max_new_tokens": None},
    "max_new_tokens": {"max_new_tokens": 2**62},
    "top_k": {"top_k": 2**200},
    "token id": {"stop_token_ids": [10**5000]},
    "bias of a token": {"logit_bias": {10**30: 1}},
    "temperature": {"temperature": 10**5000},
}


@pytest.mark.parametrize("params", TOO_MUCH.values(), ids=TOO_MUCH)
def test_counts_are_bounded_before_anything_is_built(engine, params):
    tracemalloc.start()
    for call in everyway(engine, prompt="hi", sampling_params=SHORT | params):
        with pytest.raises((InvalidParameterError, RequestTooLongError)):
            call()
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_what_a_call_multiplies_by_n_is_bounded(engine):
    many = {"input_ids": [[5]] * 65, "sampling_params": SHORT | {"n": 1024}}
    with pytest.raises(InvalidParameterError, match=r"number of prompts times n=1024 .* 65,536"):
        engine.generate(**many)
    prompt = {"input_ids": [5] * 500, "sampling_params": {"max_new_tokens": 12, "n": 1024}}
    with pytest.raises(InvalidParameterError, match="top_logprobs_num=40 times positions"):
        engine.generate(**prompt, return_logprob=True, logprob_start_len=0, top_logprobs_num=40)
    assert len(engine.generate("hi", {"max_new_tokens": 1, "n": 1024})) == 1024


def test_ids_are_bounded(engine):
    for call in everyway(engine, prompt="hi", sampling_params=SHORT, rid="r" * 513):
        with pytest.raises(InvalidParameterError, match="rid must be at most 512"):
            call()
    with pytest.raises(InvalidParameterError, match="512"):
        engine.open_session("s" * 513)
    with pytest.raises(InvalidRequestError, match="non-empty string"):
        engine.open_session(5)


def test_limits_are_what_jobs_have(engine, tmp_path):
    lines = tmp_path / "in.jsonl"
    lines.write_text('{"prompt": "a", "sampling_params": {"n": 1025}}\n')
    output = tmp_path / "out.jsonl"
    summary = rootlet.run_jobs(lines, output, engine=engine, progress=False)
    assert summary.errors == 1
    assert "n must be at most 1,024" in output.read_text()


class Hostile:
    """Nothing about it works."""

    def __repr__(self):
        raise ZeroDivisionError

    __str__ = __hash__ = __len__ = __iter__ = __eq__ = __bool__ = __repr__


@pytest.mark.parametrize("value", [Hostile(), 10**5000, ["x"] * 10**6, "x" * 10**7], ids=["a", "b", "c", "d"])
def test_messages_about_odd_values_are_short(engine, value):
    """Whatever is wrong, the message can be written, and is no copy of what was sent."""
    fields = [
        "temperature",
        "n",
        "stop",
        "seed",
        "ignore_eos",
        "logit_bias",
        "custom_params",
        "choice",
    ]
    calls = [lambda field=field: engine.submit("hi", {field: value}) for field in fields]
    arguments = ["prompt", "sampling_params", "input_ids", "return_logprob", "logprob_start_len", "rid"]
    arguments += ["top_logprobs_num", "custom_logit_processor", "return_hidden_states", "session_params"]
    calls += [lambda name=name: engine.submit(**{"prompt": "hi", name: value}) for name in arguments]
    for call in calls:
        with contextlib.suppress(RootletError):
            call().abort()
            continue
        with pytest.raises(RootletError) as caught:
            call()
        assert len(str(caught.value)) < 5000
