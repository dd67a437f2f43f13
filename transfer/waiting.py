"""Waiting for what blocks in C++, so that Ctrl-C still ends the wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol, TypeVar

T = TypeVar("T")
_PAUSE = 0.2  # seconds between two looks


class Watch(Protocol):
    """Asked again and again while something is waited for; raises where the wait is to end."""

    def __call__(self) -> None:
        """Raise TransferError if time is up or the group was closed."""


def interruptibly(function: Callable[[], T]) -> T:
    """``function()``, which blocks and has a timeout of its own, on a thread that nobody has to wait for.

    A caller that is interrupted leaves the thread to end by that timeout; what it returns is let go.
    """
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(function())
        except BaseException as error:  # the caller's to handle, whatever it is
            outcome.set_exception(error)

    threading.Thread(target=run, name="rootlet-transfer", daemon=True).start()
    return outcome.result()


def keep_until(is_over: Callable[[], bool], held: list[object]) -> None:
    """Hold on to things whose end would block until something is over, then drop them.

    At the interpreter's exit they are left alone: a thread that comes back from C++ by then aborts it.
    """

    def run() -> None:
        while not is_over():
            time.sleep(_PAUSE)
        held.clear()

    threading.Thread(target=run, name="rootlet-transfer", daemon=True).start()


def first_line(error: BaseException) -> str:
    """What a C++ error says before its stack."""
    return str(error).strip().partition("\n")[0].rstrip(".")
