"""What one fuzzed request does with an engine: cases take ``(engine, rng)`` and return a word for what came.

A case lets errors of the engine pass; what it provokes in its own code (a callback that raises) it catches.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sys
from collections.abc import Callable
from random import Random
from typing import Any

from rootlet import Engine

from . import odd

WAIT = 300.0  # seconds; only a hang takes so long


class Provoked(Exception):
    """Raised by callbacks and processors of these cases."""


PROVOKED = (Provoked, SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError)


def generate(engine: Engine, rng: Random) -> str:
    options: dict[str, Any] = {}
    if rng.random() < 0.3:
        options = {"return_logprob": True, "logprob_start_len": rng.choice([-1, 0, 3, 10**9])}
        options |= {
            "top_logprobs_num": rng.choice([0, 3, 1000, -1]),
            "return_text_in_logprobs": rng.random() < 0.5,
        }
    if rng.random() < 0.2:
        options["return_hidden_states"] = True
    count = rng.choice([None, None, 1, 4])
    prompt = odd.text(rng) if count is None else [odd.text(rng) for _ in range(count)]
    engine.generate(prompt, odd.params(rng), **options)
    return "answered"


def token_ids(engine: Engine, rng: Random) -> str:
    ids = [rng.randrange(300) for _ in range(rng.choice([1, 5, 60, 400]))]
    if rng.random() < 0.3:
        ids += rng.choice([[-1], [10**9], [2**70], ["a"], [None], [1] * 5000])
    engine.generate(input_ids=ids, sampling_params=odd.params(rng))
    return "answered"


def constrained(engine: Engine, rng: Random) -> str:
    params = {"max_new_tokens": 16, "temperature": 1.0, "seed": 1}
    draw = odd.constraint if rng.random() < 0.7 else odd.constraint_of_a_kind
    handle = engine.submit("Say ", params | draw(rng))
    if rng.random() < 0.3:
        handle.abort()
    handle.result(WAIT)
    return "answered"


def stream_left(engine: Engine, rng: Random) -> str:
    stream = engine.generate(odd.text(rng), odd.params(rng), stream=True)
    for _ in itertools.islice(stream, rng.randrange(5)):
        pass
    if rng.random() < 0.5:
        stream.close()
    return "left"


def stream_never_begun(engine: Engine, rng: Random) -> str:
    params = {"max_new_tokens": 500, "ignore_eos": True}
    if rng.random() < 0.5:
        engine.generate(["a", "b"], params, stream=True)
    else:
        engine.chat([{"role": "user", "content": "Hi"}], params, stream=True)
    return "never begun"


def aborted(engine: Engine, rng: Random) -> str:
    handle = engine.submit(odd.text(rng), {"max_new_tokens": 500, "ignore_eos": True})
    for _ in itertools.islice(handle, rng.randrange(4)):
        pass
    handle.abort()
    if rng.random() < 0.5:
        handle.abort()
    handle.result(WAIT)
    return "aborted"


def _hostile(engine: Engine, rng: Random) -> Callable[[], object]:
    """Something a callback had better not do."""

    def fail() -> None:
        raise Provoked

    def stop() -> None:
        raise rng.choice([KeyboardInterrupt, GeneratorExit, asyncio.CancelledError])

    def call_back() -> None:
        engine.generate("again", {"max_new_tokens": 1})

    def ask() -> None:
        engine.stats()

    return rng.choice([fail, sys.exit, stop, call_back, ask, engine.flush_cache])


def callbacks(engine: Engine, rng: Random) -> str:
    handle = engine.submit("Hello", {"max_new_tokens": rng.randrange(1, 8)})
    for _ in range(rng.randrange(1, 4)):
        act = _hostile(engine, rng)
        with contextlib.suppress(*PROVOKED):  # if it is done already it is called right here
            handle.add_done_callback(lambda _, act=act: act())
    handle.result(WAIT)
    return "answered"


def processors(engine: Engine, rng: Random) -> str:
    act = rng.choice([_hostile(engine, rng), None])
    result = rng.choice(
        [lambda x: x, lambda x: x[:, :5], lambda x: None, lambda x: x * float("nan"), lambda x: 5]
    )
    steps = itertools.count()
    moment = rng.randrange(4)

    def process(logits: Any, custom_param_list: Any) -> Any:
        if next(steps) == moment:
            if act is not None:
                act()
            return result(logits)
        return logits

    params = {"max_new_tokens": 6, "ignore_eos": True}
    engine.generate(["Hello", "you"], params, custom_logit_processor=process)
    return "answered"


def chat(engine: Engine, rng: Random) -> str:
    options = odd.chat_options(rng)
    params = {"max_new_tokens": 12} if rng.random() < 0.7 else odd.params(rng)
    if rng.random() < 0.4:
        stream = engine.chat(odd.messages(rng), params, stream=True, **options)
        for _ in itertools.islice(stream, rng.choice([0, 2, 100])):
            pass
        return "left"
    engine.chat(odd.messages(rng), params, **options)
    return "answered"


def wrong_types(engine: Engine, rng: Random) -> str:
    names = [
        "prompt",
        "sampling_params",
        "input_ids",
        "return_logprob",
        "logprob_start_len",
        "top_logprobs_num",
    ]
    names += ["rid", "custom_logit_processor", "return_hidden_states", "session_params", "input_embeds"]
    junk = {name: odd.junk(rng) for name in rng.sample(names, rng.randrange(1, 4))}
    arguments = {"prompt": "Hello", "sampling_params": {"max_new_tokens": 2}} | junk
    call = rng.choice([engine.generate, engine.submit])
    answer = call(**arguments)
    if call == engine.submit:
        answer.result(WAIT)
    return "answered"


def others(engine: Engine, rng: Random) -> str:
    match rng.randrange(7):
        case 0:
            engine.score(odd.text(rng), [odd.text(rng), " a"])
        case 1:
            engine.score(odd.junk(rng), odd.junk(rng))
        case 2:
            engine.encode(odd.junk(rng))
        case 3:
            session = engine.open_session()
            engine.generate("Hello", {"max_new_tokens": 2}, session_params={"id": session})
            engine.generate(
                " you", {"max_new_tokens": 2}, session_params={"id": session, "offset": odd.junk(rng)}
            )
            engine.close_session(session)
        case 4:
            engine.close_session(odd.junk(rng))
        case 5:
            engine.close_session(engine.open_session(odd.junk(rng)))
        case _:
            engine.flush_cache()
            engine.get_server_info()
            engine.stats()
    return "answered"


async def awaited(engine: Engine, rng: Random) -> str:
    """A task that may be cancelled at any moment."""
    task = asyncio.ensure_future(engine.async_generate(odd.text(rng), odd.params(rng)))
    if rng.random() < 0.5:
        await asyncio.sleep(rng.choice([0, 0, 0.001, 0.01]))
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
            return "answered"
        return "cancelled"
    await task
    return "answered"


async def async_streams(engine: Engine, rng: Random) -> str:
    params = {"max_new_tokens": rng.choice([4, 500]), "ignore_eos": True}
    if rng.random() < 0.5:
        stream = await engine.async_generate(odd.text(rng), params, stream=True)
    else:
        stream = await engine.async_chat([{"role": "user", "content": "Hi"}], params, stream=True)
    wanted = rng.randrange(4)  # 0: never begun
    if wanted:
        async for _ in stream:
            wanted -= 1
            if not wanted:
                break
    return "left"


CASES: list[tuple[Callable[..., Any], int]] = [
    (generate, 20), (token_ids, 5), (constrained, 15), (stream_left, 10), (stream_never_begun, 3),
    (aborted, 8), (callbacks, 8), (processors, 8), (chat, 15), (wrong_types, 15), (others, 5), (awaited, 10),
    (async_streams, 8),
]  # fmt: skip
"""Every case and how often it comes."""
