"""Streams own their requests: however one ends, begun or not, nothing runs on for nobody."""

from __future__ import annotations

import asyncio
import gc
import threading

import pytest
from fake_owner import FakeOwner

import rootlet
from rootlet.engine.replies.handle import RequestHandle
from rootlet.engine.replies.outputs import RequestOutput
from rootlet.engine.replies.streams import Stream

ENDLESS = {"temperature": 0, "max_new_tokens": 480, "ignore_eos": True}
MANY = {"input_ids": [[5, 6], [7, 8]], "sampling_params": ENDLESS | {"n": 2}, "stream": True}
ONE = {"input_ids": [5, 6], "sampling_params": ENDLESS, "stream": True}


@pytest.fixture(scope="module")
def engine(tiny_text_model):
    with rootlet.Engine(tiny_text_model, load_format="dummy", max_total_tokens=4096) as engine:
        yield engine


def leave(stream, how):
    if how in ("begun, closed", "begun, dropped"):
        next(stream)
    if how.endswith("closed"):
        stream.close()


def running(engine):
    """Requests that run or wait once all that was posted is done; posts are done in order."""
    gc.collect()
    stats = engine.stats()
    return stats.num_running + stats.num_waiting


WAYS = ["dropped", "closed", "begun, dropped", "begun, closed"]


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("args", [ONE, MANY], ids=["one", "many"])
def test_leaving_aborts(engine, args, how):
    leave(engine.generate(**args), how)
    assert running(engine) == 0


@pytest.mark.parametrize("how", WAYS)
def test_leaving_a_chat_aborts(engine, how):
    stream = engine.chat([{"role": "user", "content": "Hi"}], ENDLESS, stream=True)
    leave(stream, how)
    if how.endswith("dropped"):
        del stream
    assert running(engine) == 0


@pytest.mark.parametrize("how", WAYS)
def test_leaving_the_iterator_of_a_handle_aborts(engine, how):
    handle = engine.submit(input_ids=[5, 6], sampling_params=ENDLESS)
    leave(iter(handle), how)
    assert handle.result(60).finish_reason["type"] == "abort"


def test_breaking_out_of_a_loop_aborts(engine):
    for _ in engine.generate(**MANY):
        break
    assert running(engine) == 0


async def started(engine, chat):
    if chat:
        return await engine.async_chat([{"role": "user", "content": "Hi"}], ENDLESS, stream=True)
    return await engine.async_generate(**MANY)


@pytest.mark.parametrize("chat", [False, True], ids=["generate", "chat"])
@pytest.mark.parametrize("how", ["dropped", "closed", "cancelled before", "cancelled within", "broken off"])
def test_leaving_an_async_stream_aborts(engine, how, chat):
    async def client(ready):
        stream = await started(engine, chat)
        if how == "cancelled before":
            ready.set()
            await asyncio.sleep(600)
        elif how == "closed":
            await stream.aclose()
        elif how != "dropped":
            async for _ in stream:
                ready.set()
                if how == "broken off":
                    break

    async def main():
        ready = asyncio.Event()
        task = asyncio.ensure_future(client(ready))
        if how.startswith("cancelled"):
            await ready.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            await task
        del task

    asyncio.run(main())
    assert running(engine) == 0


def test_a_closed_stream_has_ended_for_all_its_readers(engine):
    stream = engine.generate(**ONE)
    ended = []
    readers = [threading.Thread(target=lambda: ended.append(len(list(stream)))) for _ in range(3)]
    for reader in readers:
        reader.start()
    next(stream)
    stream.close()
    for reader in readers:
        reader.join(60)
    assert len(ended) == 3
    assert list(stream) == []


def test_readers_of_one_stream_share_its_outputs():
    """Several threads may read; each output goes to one, the last one once, and all come to the end."""
    handles = [RequestHandle(str(i), FakeOwner()) for i in range(50)]
    stream, seen = Stream(handles, FakeOwner()), []
    readers = [threading.Thread(target=lambda: seen.extend(stream)) for _ in range(4)]
    for reader in readers:
        reader.start()
    for handle in handles:
        handle.deliver(
            RequestOutput(
                rid=handle.rid,
                text="",
                token_ids=(1,),
                finish_reason={"type": "stop"},
                prompt_tokens=1,
                completion_tokens=1,
                cached_tokens=0,
            )
        )
    for reader in readers:
        reader.join(60)
    assert not any(reader.is_alive() for reader in readers)
    assert sorted(int(output.rid) for output in seen) == list(range(50))


def test_an_async_stream_may_move_to_another_event_loop(engine):
    params = ENDLESS | {"max_new_tokens": 20}
    handle = engine.submit(input_ids=[5, 6], sampling_params=params)
    stream = aiter(handle)
    first = asyncio.run(anext(stream))

    async def rest():
        return [output async for output in stream]

    last = asyncio.run(rest())[-1]
    assert last.token_ids[: len(first.token_ids)] == first.token_ids
    assert last.completion_tokens == 20
