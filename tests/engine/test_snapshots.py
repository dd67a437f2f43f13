"""What a stream hands out stays as it was, however late it is read, and is like any other output."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import json
import pickle
import threading

import pytest
from fake_owner import FakeOwner, growing_handle

import rootlet
from rootlet.engine.replies.outputs import RequestOutput
from rootlet.engine.replies.streams import AsyncStream
from rootlet.errors import TokenizerError

GREEDY = {"temperature": 0, "max_new_tokens": 24, "ignore_eos": True}
WAYS = {
    "plain": {},
    "stop strings": {"sampling_params": GREEDY | {"stop": ["never said"]}},
    "log-probabilities": {"return_logprob": True, "logprob_start_len": 0, "top_logprobs_num": 2},
    "texts of tokens": {"return_logprob": True, "return_text_in_logprobs": True},
    "batch": {"sampling_params": GREEDY | {"n": 2}},
}


@pytest.fixture(scope="module")
def engine(tiny_text_model):
    options = {"load_format": "dummy", "max_total_tokens": 4096, "step_by_hand": True}
    with rootlet.Engine(tiny_text_model, **options) as engine:
        yield engine


def stream(engine, way):
    engine.flush_cache()  # so that each finds the same in the cache
    return engine.generate(**{"prompt": "brown fox", "sampling_params": GREEDY, "stream": True} | WAYS[way])


def read(output):
    """All that can be read of an output."""
    return {each.name: getattr(output, each.name) for each in dataclasses.fields(output)} | dict(output)


@pytest.mark.parametrize("way", WAYS)
def test_kept_snapshots_are_what_they_were(engine, way):
    """Read at once, or behind the end and the last one first, or by several threads."""
    at_once = [read(output) for output in stream(engine, way)]
    kept = list(stream(engine, way))
    behind = [read(output) for output in reversed(kept)][::-1]
    for late, early in zip(behind, at_once, strict=True):
        for own in (late, early):  # of each request its own
            (
                own.pop("rid"),
                own.pop("timing"),
                own.pop("continuation"),
                own["meta_info"].pop("id"),
                own["meta_info"].pop("timing", 0),
            )
        assert late == early
    assert len(kept) > 20
    assert {len(out.token_ids) - out.completion_tokens for out in kept} == {0}
    last = max(kept, key=lambda out: out.completion_tokens)
    for out in kept:
        if out.index == last.index:
            assert out.token_ids == last.token_ids[: out.completion_tokens]
            assert last.text.startswith(out.text)


def test_threads_that_read_a_snapshot_get_the_same(engine):
    for output in stream(engine, "log-probabilities"):
        seen = []

        def look(output=output, seen=seen):
            seen.append(output.output_token_logprobs)

        readers = [threading.Thread(target=look) for _ in range(4)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(60)
        assert len({id(one) for one in seen}) == 1
        seen[0].append("mine")
        assert output["meta_info"]["output_token_logprobs"][-1] == "mine"


@pytest.mark.parametrize("way", WAYS)
def test_snapshots_are_like_any_other_output(engine, way):
    outputs = stream(engine, way)
    for _ in range(3):
        next(outputs)
    for use in (
        copy.copy,
        copy.deepcopy,
        lambda output: pickle.loads(pickle.dumps(output)),
        dataclasses.replace,
        lambda output: RequestOutput(
            **{f.name: getattr(output, f.name) for f in dataclasses.fields(output) if f.init}
        ),
    ):
        output = next(outputs)
        other = use(output)  # the first to read it
        assert other == output == other
        assert repr(other) == repr(output)
        assert dict(other) == dict(output)
        assert dataclasses.asdict(other) == dataclasses.asdict(output)
        assert json.loads(json.dumps(output.as_dict()))["meta_info"]["prompt_tokens"] == output.prompt_tokens
        assert "_unread" not in vars(other)
    first, second = next(outputs), next(outputs)
    assert first != second
    with pytest.raises(AttributeError):
        first.text = "mine"
    with pytest.raises(AttributeError):
        _ = first.texts
    outputs.close()
    if way == "plain":
        assert hash(first) == hash(copy.copy(first))


def test_each_step_is_a_snapshot_for_a_task_that_keeps_up():
    async def main():
        owner = FakeOwner()
        request, handle = growing_handle(owner)
        outputs, seen = AsyncStream([handle], owner), []
        for token in range(5):
            waiting = asyncio.ensure_future(anext(outputs))
            await asyncio.sleep(0)
            request.token_ids.append(token)
            owner.bells.step()
            seen.append((await waiting).token_ids)
        assert seen == [tuple(range(count)) for count in range(1, 6)]

    asyncio.run(main())


def test_a_busy_event_loop_looks_once_for_many_steps():
    async def main():
        owner = FakeOwner()
        request, handle = growing_handle(owner)
        outputs = AsyncStream([handle], owner)
        waiting = asyncio.ensure_future(anext(outputs))
        await asyncio.sleep(0)
        loop, calls = asyncio.get_running_loop(), []
        call, loop.call_soon_threadsafe = loop.call_soon_threadsafe, calls.append
        for token in range(10):
            request.token_ids.append(token)
            owner.bells.step()
        assert len(calls) == 1
        loop.call_soon_threadsafe = call
        call(calls[0])
        assert (await waiting).token_ids == tuple(range(10))
        request.token_ids.append(10)
        waiting = asyncio.ensure_future(anext(outputs))
        await asyncio.sleep(0)
        owner.bells.step()
        assert (await waiting).completion_tokens == 11

    asyncio.run(main())


class Breaking:
    """A tokenizer's text that raises at its first token."""

    never_fails = False

    def start(self, params, prompt_ids):
        raise ArithmeticError


def test_a_text_that_cannot_be_made_is_raised_to_the_task_that_waits():
    aborted = []

    async def main():
        owner = FakeOwner(aborted.append)
        request, handle = growing_handle(owner, Breaking())
        waiting = asyncio.ensure_future(anext(AsyncStream([handle], owner)))
        await asyncio.sleep(0)
        request.token_ids.append(7)
        owner.bells.step()
        with pytest.raises(TokenizerError):
            await waiting

    asyncio.run(main())
    assert set(aborted) == {"r"}
