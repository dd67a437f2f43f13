"""Partial rollouts: requests are aborted anywhere, and go on later as if nothing had happened."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_text import write_tiny_text_model

import rootlet
from rootlet.errors import EngineClosedError, GrammarError, InvalidRequestError, RequestTooLongError

PROMPT = [10 + (37 * i) % 250 for i in range(21)]
LENGTH = 14
SAME = (
    "text", "token_ids", "completion_tokens", "finish_reason", "prompt_tokens", "sampling_mask",
    "input_token_logprobs", "input_top_logprobs", "output_token_logprobs", "output_top_logprobs",
)  # fmt: skip
DRAWN = {"temperature": 1.1, "seed": 77}
LOGPROBS = {"return_logprob": True, "top_logprobs_num": 2}


def ban_last(logits, custom_param_list):
    """Takes notes: what it banned before, it bans for good."""
    for row, notes in zip(logits, custom_param_list):
        banned = notes.setdefault("banned", [])
        row[banned] = -float("inf")
        notes["banned"] = [*banned, int(row.argmax())]  # a new list: notes are copied one level deep
    return logits


CASES = {
    "greedy": ({"temperature": 0}, {}),
    "drawn": (DRAWN, {}),
    "filters, their masks": (
        DRAWN | {"top_k": 30, "top_p": 0.9, "min_p": 0.01}, {"return_sampling_mask": True},
    ),
    "penalties": (DRAWN | {"frequency_penalty": 0.8, "presence_penalty": 0.4, "repetition_penalty": 1.4}, {}),
    "least length": ({"temperature": 0, "min_new_tokens": 9, "ignore_eos": False}, {}),
    "bias": (DRAWN | {"logit_bias": {40: 3.0, 41: 3.0, 42: -100.0}}, {}),
    "regex": (DRAWN | {"regex": r"[a-f]{4}(-[a-f]{2}){3,9}"}, LOGPROBS),
    "json": (
        DRAWN | {"json_schema": json.dumps({"type": "object", "properties": {"a": {"enum": ["bb", "cc"]}},
                 "required": ["a"], "additionalProperties": False})},
        {"return_sampling_mask": True},
    ),
    "documented logprobs": (DRAWN | {"top_p": 0.8}, LOGPROBS | {"logprob_start_len": 3}),
    "sampled logprobs": (DRAWN | {"top_k": 9}, LOGPROBS | {"logprobs_of": "sampled", "logprob_start_len": 0}),
    "tempered logprobs": (DRAWN | {"min_p": 0.1}, {"return_logprob": True, "logprobs_of": "tempered"}),
    "raw logprobs": (DRAWN, LOGPROBS | {"logprobs_of": "raw", "return_text_in_logprobs": True}),
    "hidden states": ({"temperature": 0}, {"return_hidden_states": True}),
    "hidden states, prompt scores": (
        DRAWN, LOGPROBS | {"return_hidden_states": True, "logprob_start_len": 0},
    ),
    "processor": (DRAWN | {"custom_params": {}}, {"custom_logit_processor": ban_last}),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return write_tiny_text_model(tmp_path_factory.mktemp("continue"))


@pytest.fixture(scope="module")
def make(folder):
    """Engines driven by hand, each built once."""
    built: dict[str, rootlet.Engine] = {}

    def make(**options) -> rootlet.Engine:
        key = repr(options)
        if key not in built:
            options = {
                "max_total_tokens": 1024,
                "page_size": 4,
                "step_by_hand": True,
                "device": "cpu",
            } | options
            options = {"dtype": "float32", "load_format": "dummy", "deterministic": True} | options
            built[key] = rootlet.Engine(folder, **options)
        return built[key]

    yield make
    for engine in built.values():
        engine.close()


@pytest.fixture
def engine(make):
    return make()


def call(params, more, **other) -> dict:
    params = {"max_new_tokens": LENGTH, "ignore_eos": True} | params
    return {"input_ids": PROMPT, "sampling_params": params, **more, **other}


def interrupted(engine, num_tokens, **arguments) -> rootlet.RequestOutput:
    """What there is of a request that is aborted with so many tokens, or ends before."""
    handle = engine.submit(**arguments, stream=True)
    while True:
        latest = handle.latest()
        if handle.done() or len(latest.token_ids if latest else ()) >= num_tokens:
            break
        engine.step()
    engine.abort()
    engine.step()
    return handle.result()


def check_consistent(output):
    """As many of everything as there are tokens."""
    count = len(output.token_ids)
    assert output.completion_tokens == count
    for name in ("output_token_logprobs", "output_top_logprobs", "sampling_mask"):
        assert len(getattr(output, name) or range(count)) == count, name
    if output.hidden_states is not None and count:
        assert len(output.hidden_states) == count
        assert len(output.hidden_states[0]) == output.prompt_tokens
    assert [t for _, t, _ in output.output_token_logprobs or ()] in ([], list(output.token_ids))


def check_same(got, wanted):
    for name in SAME:
        assert getattr(got, name) == getattr(wanted, name), name
    assert got.weights_versions == wanted.weights_versions
    check_consistent(got)
    assert (got.hidden_states is None) == (wanted.hidden_states is None)
    for a, b in zip(got.hidden_states or (), wanted.hidden_states or (), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", CASES)
def test_it_goes_on_as_if_nothing_had_happened(make, name):
    """Cut behind every number of tokens, continued to the end: equal to the bit."""
    engine = make(disable_jump_forward=True)  # token by token
    arguments = call(*CASES[name])
    whole = engine.generate(**arguments)
    assert whole.completion_tokens > 5
    for cut in range(whole.completion_tokens):
        part = interrupted(engine, cut, **arguments)
        assert part.finish_reason["type"] == "abort"
        assert part.completion_tokens == cut
        assert part.token_ids == whole.token_ids[:cut]
        check_consistent(part)
        check_same(engine.generate(continue_from=part), whole)


OPTIONS = [
    {"disable_overlap_schedule": False},
    {"chunked_prefill_size": 6, "disable_radix_cache": True},
    {"max_total_tokens": 40},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", ["drawn", "regex", "json", "hidden states, prompt scores", "penalties"])
def test_whatever_the_engine_does_besides(make, options, name):
    """With a step in flight when it ends; with nothing in the cache; in a pool that has hardly any room."""
    engine = make(**options)
    arguments = call(*CASES[name])
    whole = make().generate(**arguments)
    for cut in (0, 1, 6, 12):
        part = interrupted(engine, cut, **arguments)
        check_same(engine.generate(continue_from=part), whole)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_again_and_again(make, data):
    """Any number of times, at any step (in the middle of the prompt too), also through pickle."""
    engine = make(chunked_prefill_size=5)
    name = data.draw(st.sampled_from(sorted(CASES)))
    whole = make().generate(**call(*CASES[name]))
    output = None
    for steps in data.draw(st.lists(st.integers(0, 5), max_size=6)):
        start = call(*CASES[name]) if output is None else {"continue_from": output}
        handle = engine.submit(**start, stream=data.draw(st.booleans()))
        for _ in range(steps):
            engine.step()
        handle.abort()
        engine.step()
        output = handle.result()
        check_consistent(output)
        if data.draw(st.booleans()) and name != "processor":
            output = pickle.loads(pickle.dumps(output))
    last = engine.generate(**(call(*CASES[name]) if output is None else {"continue_from": output}))
    check_same(last, whole)


@pytest.mark.parametrize("keep", [False, True])
def test_stop_strings_across_the_seam(engine, keep):
    """Found wherever the cut is; text that may be the beginning of one is shown by the part, cut later."""
    text = engine.generate(**call(DRAWN, {})).text
    stops = {text[i : i + size] for i in range(2, len(text) - 6, 3) for size in (1, 3, 6)}
    for stop in sorted(stops):
        arguments = call(DRAWN | {"stop": [stop, "never"], "no_stop_trim": keep}, {"return_logprob": True})
        whole = engine.generate(**arguments)
        assert whole.finish_reason == {"type": "stop", "matched": stop}
        for cut in range(whole.completion_tokens):
            part = interrupted(engine, cut, **arguments)
            check_same(engine.generate(continue_from=part), whole)


def test_several_samples_and_lists_with_some_that_have_ended(make):
    """Each sample goes on by its own seed; what has ended is answered as it is, in its place."""
    engine = make()
    arguments = call(DRAWN | {"n": 3}, {"return_logprob": True})
    wholes = engine.generate(**arguments)
    parts = {}
    for chunk in engine.generate(**arguments, stream=True):
        if chunk.index == 2 and chunk.completion_tokens == 4:
            engine.abort()
        parts[chunk.index] = chunk
    parts = [parts[i] for i in range(3)]
    assert {part.finish_reason["type"] for part in parts} == {"abort"}
    for got, whole in zip(engine.generate(continue_from=parts), wholes, strict=True):
        check_same(got, whole)
        assert got.index == whole.index
    mixed = [wholes[2], parts[0], wholes[0]]
    again = engine.generate(continue_from=mixed)
    assert [output.index for output in again] == [0, 1, 2]
    assert [output.token_ids for output in again] == [wholes[i].token_ids for i in (2, 0, 0)]
    assert again[0]["meta_info"] == wholes[2]["meta_info"]
    last = {chunk.index: chunk for chunk in engine.generate(continue_from=tuple(mixed), stream=True)}
    assert [last[i].token_ids for i in range(3)] == [output.token_ids for output in again]
    assert engine.generate(continue_from=wholes[0].at(None)) == wholes[0].at(None)
    assert engine.generate(continue_from=[]) == []


def test_asynchronously_and_by_handle(folder):
    """With a thread of the engine's own; one that has ended gives a handle that is done."""

    async def run(engine):
        arguments = call(DRAWN | {"max_new_tokens": 200}, {})
        whole = await engine.async_generate(**arguments)
        handle = engine.submit(**arguments)
        async for chunk in handle:
            if chunk.completion_tokens >= 5:
                engine.abort(handle.rid)
        part = await handle
        if part.finish_reason["type"] == "abort":
            assert 5 <= part.completion_tokens < 200
        check_same(await engine.async_generate(continue_from=part), whole)
        [*_, last] = [chunk async for chunk in await engine.async_generate(continue_from=part, stream=True)]
        check_same(last, whole)
        check_same(await engine.submit(continue_from=part, rid="mine"), whole)
        ended = engine.submit(continue_from=whole)
        assert ended.done()
        assert ended.result() == whole == [*ended][-1]

    options = {"dtype": "float32", "load_format": "dummy", "deterministic": True, "max_total_tokens": 1024}
    with rootlet.Engine(folder, device="cpu", **options) as engine:
        asyncio.run(run(engine))
    with pytest.raises(EngineClosedError):
        engine.abort()


def test_another_engine_goes_on(make):
    arguments = call(*CASES["hidden states, prompt scores"])
    whole = make().generate(**arguments)
    part = pickle.loads(pickle.dumps(interrupted(make(), 4, **arguments)))
    check_same(make(chunked_prefill_size=5).generate(continue_from=part), whole)


def test_waiting_preempted_and_compiling_requests_end_alike(make):
    """Everything that is there ends at once, in whatever state it is, and all of it goes on."""
    engine = make(max_running_requests=2, max_total_tokens=64)
    more = LOGPROBS | {"return_hidden_states": True, "return_sampling_mask": True}
    params = [DRAWN | {"seed": i, "max_new_tokens": 24, "top_k": 20} for i in range(5)]
    wholes = [make().generate(**call(one, more)) for one in params]
    before = engine.stats().num_preemptions
    handles = [engine.submit(**call(one, more), stream=False) for one in params]
    compiling = engine.submit(**call({"regex": "(ab|cd){2,7}x", "temperature": 0}, more))
    for _ in range(40):
        engine.step()
        if engine.stats().num_preemptions > before:
            break
    assert engine.stats().num_preemptions > before
    engine.abort()
    engine.step()
    parts = [handle.result() for handle in handles]
    assert compiling.result().finish_reason["type"] == "abort"
    assert compiling.result().token_ids == ()
    assert engine.stats().num_running == engine.stats().num_waiting == 0
    lengths = [len(part.token_ids) for part in parts]
    assert lengths[4] == 0
    assert all(lengths[:2])
    for part in parts:
        assert part.finish_reason == {
            "type": "abort", "message": "Aborted by the caller.", "status_code": None, "err_type": None,
        }  # fmt: skip
        check_consistent(part)
    for got, whole in zip(engine.generate(continue_from=parts), wholes, strict=True):
        check_same(got, whole)
    assert engine.generate(continue_from=compiling.result()).text.startswith(("ab", "cd"))


def test_prompts_of_vectors_go_on(engine):
    embeds = torch.randn(9, engine._factory.limits.hidden_size, generator=torch.Generator().manual_seed(1))
    arguments = call(DRAWN, {"return_logprob": True}) | {"input_ids": None, "input_embeds": embeds}
    whole = engine.generate(**arguments)
    for cut in (0, 3):
        check_same(engine.generate(continue_from=interrupted(engine, cut, **arguments)), whole)
    with pytest.raises(InvalidRequestError, match=r"does not hold input_embeds any more.*send the tokens"):
        engine.generate(continue_from=whole, sampling_params={"max_new_tokens": 30})


def test_parameters_given_anew(engine):
    """Lengths count from the original prompt, the seed stays, and what ended by its length may get longer."""
    long = engine.generate(**call(DRAWN | {"max_new_tokens": 30}, {}))
    part = interrupted(engine, 5, **call(DRAWN, {}))
    anew = {"temperature": 1.1, "ignore_eos": True, "max_new_tokens": 30}
    check_same(engine.generate(continue_from=part, sampling_params=anew), long)
    by_length = engine.generate(**call(DRAWN, {}))
    assert by_length.finish_reason["type"] == "length"
    assert engine.generate(continue_from=by_length) is by_length
    assert (
        engine.generate(continue_from=by_length, sampling_params=anew | {"max_new_tokens": 14}) is by_length
    )
    check_same(engine.generate(continue_from=by_length, sampling_params=anew), long)
    other = engine.generate(continue_from=part, sampling_params=anew | {"seed": 78})
    assert other.token_ids[:5] == long.token_ids[:5]
    assert other.token_ids != long.token_ids
    each = engine.generate(continue_from=[part, part], sampling_params=[anew, anew | {"max_new_tokens": 7}])
    assert [output.completion_tokens for output in each] == [30, 7]
    with pytest.raises(InvalidRequestError, match=r"5 leave nothing to draw behind the 5 tokens"):
        engine.generate(continue_from=part, sampling_params={"max_new_tokens": 5})
    with pytest.raises(InvalidRequestError, match="one by one: leave n=2 out"):
        engine.generate(continue_from=part, sampling_params={"n": 2})
    with pytest.raises(RequestTooLongError):
        engine.generate(continue_from=part, sampling_params={"max_new_tokens": 10**6})


def test_outputs_say_which_weights_drew_which_tokens(folder):
    """Of all parts; a version that goes on is one span."""
    options = {"dtype": "float32", "load_format": "dummy", "step_by_hand": True, "max_total_tokens": 256}
    with rootlet.Engine(folder, device="cpu", deterministic=True, **options) as engine:
        arguments = call(DRAWN, {})
        whole = engine.generate(**arguments)
        part = interrupted(engine, 3, **arguments)
        assert engine.generate(continue_from=part).weights_versions == ((0, 0, LENGTH),)
        weights = [(name, engine.weight(name)) for name in ["model.norm.weight"]]
        engine.update_weights(weights, version="b", partial=True)
        part = interrupted(engine, 7, continue_from=part)
        assert part.weights_versions == ((0, 0, 3), ("b", 3, 7))
        part = interrupted(engine, 9, continue_from=part)
        assert part.weights_versions == ((0, 0, 3), ("b", 3, 9))
        engine.update_weights(weights, version="c", partial=True)
        last = engine.generate(continue_from=part)
        assert last.weights_versions == ((0, 0, 3), ("b", 3, 9), ("c", 9, LENGTH))
        assert last.weights_version == "c"
        assert last.token_ids == whole.token_ids  # the weights were the same


def test_what_a_pause_ended_goes_on(make):
    engine = make()
    arguments = call(DRAWN, LOGPROBS)
    whole = engine.generate(**arguments)
    handle = engine.submit(**arguments)
    for _ in range(5):
        engine.step()
    assert engine.pause("abort") == 1
    part = handle.result()
    assert 0 < part.completion_tokens < LENGTH
    engine.resume()
    check_same(engine.generate(continue_from=part), whole)


def test_a_new_stop_string_that_is_there_already(engine):
    """Ends it where it stands, as it would have ended it then."""
    part = interrupted(engine, 8, **call(DRAWN, {"return_logprob": True}))
    stop = part.text[2:5]
    anew = DRAWN | {"ignore_eos": True, "stop": stop, "max_new_tokens": 30}
    whole = engine.generate(**call(anew, {"return_logprob": True}))
    assert whole.completion_tokens < 8
    check_same(engine.generate(continue_from=part, sampling_params=anew), whole)
    [last] = engine.generate(continue_from=part, sampling_params=anew, stream=True)
    check_same(last, whole)


def test_a_new_constraint_must_allow_what_is_there(engine):
    part = interrupted(engine, 6, **call(DRAWN | {"regex": "[a-f]+"}, {}))
    got = engine.generate(continue_from=part, sampling_params=DRAWN | {"regex": "[a-f]+z{3}"})
    assert got.text.endswith("zzz")
    with pytest.raises(GrammarError, match="not one that the constraint allows"):
        engine.generate(continue_from=part, sampling_params={"regex": "[0-9]+"})
    assert engine.generate(continue_from=part).text.startswith(part.text)


def test_a_processor_that_pickle_leaves_out(engine):
    whole = engine.generate(**call(*CASES["processor"]))
    part = interrupted(engine, 6, **call(*CASES["processor"]))
    sent = pickle.loads(pickle.dumps(part))
    assert sent == part
    with pytest.raises(
        InvalidRequestError, match=r"does not hold custom_logit_processor any more.*pass custom"
    ):
        engine.generate(continue_from=sent)
    check_same(engine.generate(continue_from=sent, custom_logit_processor=ban_last), whole)
    arguments = call(
        DRAWN | {"custom_params": {"f": lambda: None}}, {"custom_logit_processor": lambda x, _: x}
    )
    sent = pickle.loads(pickle.dumps(interrupted(engine, 3, **arguments)))
    with pytest.raises(InvalidRequestError, match="custom_logit_processor and sampling_params"):
        engine.generate(continue_from=sent)


def test_what_is_refused(engine):
    part = interrupted(engine, 3, **call(DRAWN, {}))
    assert "continuation" not in repr(part)
    assert not any("contin" in key for key in [*part, *part["meta_info"]])
    for wrong in ("text", 5, dict(part), part.as_dict(), [part, dict(part)], {"a": part}):
        with pytest.raises(InvalidRequestError, match="continue_from takes RequestOutput objects"):
            engine.generate(continue_from=wrong)
    for edited in (dataclasses.replace(part, token_ids=(5,)), dataclasses.replace(part)):
        with pytest.raises(InvalidRequestError, match="neither its prompt nor its parameters"):
            engine.generate(continue_from=edited)
    snapshot = next(engine.generate(**call(DRAWN, {}), stream=True))
    with pytest.raises(InvalidRequestError, match="has not ended"):
        engine.generate(continue_from=snapshot)
    beside = {
        "prompt": "text", "input_ids": [1], "return_logprob": True, "logprob_start_len": 0,
        "top_logprobs_num": 1, "logprobs_of": "raw", "return_hidden_states": True,
        "return_sampling_mask": True, "session_params": {"id": "x"}, "return_text_in_logprobs": True,
    }  # fmt: skip
    for name, value in beside.items():
        with pytest.raises(InvalidRequestError, match=f"so {name} cannot be given"):
            engine.generate(continue_from=part, **{name: value})
    with pytest.raises(InvalidRequestError, match="one prompt with n=1"):
        engine.submit(continue_from=[part])
    with pytest.raises(InvalidRequestError, match="2 entries for 1 prompts"):
        engine.generate(continue_from=part, sampling_params=[{}, {}])
    with pytest.raises(InvalidRequestError, match="abort takes the rid of one request"):
        engine.abort(["a", "b"])
    engine.abort("nobody")
    engine.step()


def test_counters_stay_sane(engine):
    """What a continued request finds in the cache is its own past; its prompt is not counted twice."""
    engine.flush_cache()
    part = interrupted(engine, 9, **call(DRAWN, {}))
    before = engine.stats()
    whole = engine.generate(continue_from=part)
    after = engine.stats()
    assert whole.cached_tokens == part.cached_tokens
    found = after.num_prompt_tokens_cached - before.num_prompt_tokens_cached
    computed = after.num_prompt_tokens_computed - before.num_prompt_tokens_computed
    assert found + computed == len(PROMPT) + 9
    assert computed == 1
