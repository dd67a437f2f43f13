"""Readers leave most of the time to the engine, and nothing that they put off is lost."""

from __future__ import annotations

import asyncio
import threading

import pytest
from fake_owner import FakeOwner, growing_handle

from rootlet.engine.replies.rest import LONGEST, SHARE, SHORTEST, Rest
from rootlet.engine.replies.streams import AsyncStream, Stream


class Clocks:
    def __init__(self):
        self.now = self.spent = 100.0
        self.rest = Rest(now=lambda: self.now, spent=lambda: self.spent)

    def read(self, seconds):
        self.rest.end()
        self.spent += seconds
        self.rest.begin()


def test_a_rest_is_a_multiple_of_what_reading_took():
    clocks = Clocks()
    assert clocks.rest.left == 0
    clocks.rest.begin()  # nobody has read
    assert clocks.rest.left == 0
    clocks.read(0.001)
    assert clocks.rest.left == pytest.approx(SHARE * 0.001)
    clocks.now += SHARE * 0.001 - SHORTEST / 2
    assert clocks.rest.left == 0


def test_no_rest_is_long():
    clocks = Clocks()
    clocks.read(60)
    assert clocks.rest.left == pytest.approx(LONGEST)


def test_a_thread_does_not_rest_for_another():
    clocks = Clocks()
    clocks.rest.end()
    clocks.spent += 1
    other = threading.Thread(target=clocks.rest.begin)
    other.start()
    other.join(60)
    assert clocks.rest.left == 0


def test_a_look_that_is_put_off_comes():
    async def main():
        owner = FakeOwner()
        request, handle = growing_handle(owner)
        outputs = AsyncStream([handle], owner)
        waiting = asyncio.ensure_future(anext(outputs))
        await asyncio.sleep(0)
        rest = owner.bells.of_loop(asyncio.get_running_loop())._rest
        rest._until = rest._now() + 2 * SHORTEST
        request.token_ids.append(7)
        owner.bells.step()  # the last
        assert (await waiting).token_ids == (7,)

    asyncio.run(main())


def test_who_rests_wakes_when_the_stream_is_closed():
    owner = FakeOwner()
    request, handle = growing_handle(owner)
    stream, seen = Stream([handle], owner), []
    request.token_ids.append(7)
    seen.append(next(stream))
    stream._sleep._rest._until = stream._sleep._rest._now() + 3600
    reader = threading.Thread(target=lambda: seen.extend(stream))
    reader.start()
    stream.close()
    reader.join(60)
    assert not reader.is_alive()
    assert len(seen) == 1
