"""Work on a short-lived thread: away from an event loop, or from the modes of the caller's thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")

_LONG_TEXT = 65_536  # characters; reading more takes longer than an event loop should stand still


def in_thread(function: Callable[..., T], *args: Any) -> Future[T]:
    """Begin ``function(*args)`` on a thread that ends with it."""
    outcome: Future[T] = Future()
    outcome.set_running_or_notify_cancel()  # from here on nobody can cancel it: what waits may be cancelled

    def run() -> None:
        try:
            outcome.set_result(function(*args))
        except BaseException as error:  # the caller's to handle, whatever it is
            outcome.set_exception(error)

    threading.Thread(target=run, name="rootlet-input").start()
    return outcome


async def beside_loop(num_chars: int, function: Callable[..., T], *args: Any) -> T:
    """``function(*args)``, on a thread of its own if it reads so many characters that others would notice."""
    if num_chars <= _LONG_TEXT:
        return function(*args)
    return await asyncio.wrap_future(in_thread(function, *args))


def count_chars(value: Any) -> int:
    """Characters of all texts in nested lists and dicts."""
    total, pending = 0, [value]
    while pending:
        one = pending.pop()
        if isinstance(one, str):
            total += len(one)
        elif isinstance(one, (list, tuple)) and not (one and type(one[0]) is int):  # token ids are many
            pending.extend(one)
        elif isinstance(one, dict):
            pending.extend(one.values())
    return total


async def run_beside(function: Callable[[], T]) -> T:
    """``function()`` on a thread of its own, for as long as it takes."""
    return await asyncio.wrap_future(in_thread(function))
