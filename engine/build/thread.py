"""Building an engine on a thread of its own, which ends before the first step.

torch keeps a team of OpenMP workers per thread that ever ran one of its loops. Weights loaded on the caller's
thread would leave a second, idle team in the process; with more workers than cores libgomp then puts workers
to sleep between loops at once, and what torch multiplies in a step takes two to three times as long (45
against 15 ms). A team ends with its thread. The engine's own threads (``kernels/threads.py``) need none of
this.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future

from ..config import EngineConfig
from .parts import Parts, build


class _BuildCancelledError(Exception):
    """Raised inside the builder when nobody waits for it any more."""


def build_on_thread(config: EngineConfig) -> Parts:
    """:func:`~rootlet.engine.build.parts.build` on a short-lived thread; raises what it raises.

    Ctrl-C stops the builder at its next progress report, and what it made is released.
    """
    outcome: Future[Parts] = Future()
    cancelled = threading.Event()

    def check() -> None:
        if cancelled.is_set():
            raise _BuildCancelledError

    def run(outcome: Future[Parts], config: EngineConfig, check: Callable[[], None]) -> None:
        try:
            parts = build(config, check)
            if cancelled.is_set():
                parts.release()
            outcome.set_result(parts)
        except BaseException as error:  # the caller's to handle, whatever it is
            outcome.set_exception(error)

    thread = threading.Thread(target=run, args=(outcome, config, check), name="rootlet-build", daemon=True)
    thread.start()
    try:
        parts = outcome.result()
    except BaseException:
        cancelled.set()
        raise
    thread.join()  # its OpenMP team is gone with it
    return parts
