"""The order in which lines are submitted.

Lines that begin alike are worth running side by side: the first one leaves its prefix in the cache, and
the next ones find it before anything evicts it. So the input is read ahead by a bounded window, and each
window is submitted sorted by the beginning of its prompts. Answers are keyed, so nobody needs the order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

from ...errors import JobError
from .lines import shared_text
from .request import JobLine

Order = Literal["prefix", "input"]
ORDERS = ("prefix", "input")
WINDOW_LINES = 4096
WINDOW_BYTES = 64 << 20


def check_order(order: object, window: object) -> None:
    """Raises JobError for an order nobody knows or a window that holds no line."""
    if order not in ORDERS:
        raise JobError(f"order must be {' or '.join(map(repr, ORDERS))}, got {order!r}.")
    if isinstance(window, bool) or not isinstance(window, int) or window < 1:
        raise JobError(f"window must be a number of lines, at least 1, got {window!r}.")


def in_order(
    lines: Iterable[JobLine], order: Order, window: int = WINDOW_LINES, window_bytes: int = WINDOW_BYTES
) -> Iterator[JobLine]:
    """Yield ``lines`` in the order they should be submitted.

    ``"input"`` changes nothing. ``"prefix"`` sorts windows of at most ``window`` lines and about
    ``window_bytes`` bytes; no more than one window is held at a time.
    """
    if order == "input":
        yield from lines
        return
    held: list[JobLine] = []
    nbytes = 0
    for line in lines:
        held.append(line)
        nbytes += line.identity.nbytes
        if len(held) >= window or nbytes >= window_bytes:
            yield from _drain(held)
            nbytes = 0
    yield from _drain(held)


def _drain(held: list[JobLine]) -> Iterator[JobLine]:
    """Yield and forget the held lines, sorted; ties keep the order of the input."""
    held.sort(key=shared_text)
    held.reverse()
    while held:
        yield held.pop()
