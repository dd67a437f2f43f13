"""The options of ``run_jobs``, checked."""

from __future__ import annotations

import sys
from types import FrameType

from ...errors import JobError
from .read_ahead import check_order

_NEEDED_FRAMES = 350  # what a job may need below its caller: lines nest, and so do templates


def check_options(order: object, window: object, on_changed: object, max_in_flight: object) -> None:
    """Raise JobError for an option with an impossible value."""
    check_order(order, window)
    if on_changed not in ("error", "redo"):
        raise JobError(f"on_changed must be 'error' or 'redo', got {on_changed!r}.")
    if max_in_flight is None:
        return
    if isinstance(max_in_flight, bool) or not isinstance(max_in_flight, int) or max_in_flight < 1:
        raise JobError(f"max_in_flight must be at least 1, got {max_in_flight!r}.")


def check_flags(**flags: object) -> None:
    """Raise JobError for a flag that is not a bool: ``force="no"`` would mean yes."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise JobError(f"{name} must be True or False, got {value!r}.")


def check_stack() -> None:
    """Raise JobError if so little of the caller's stack is left that lines might fail for it."""
    depth = 0
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        depth, frame = depth + 1, frame.f_back
    limit = sys.getrecursionlimit()
    if limit - depth < _NEEDED_FRAMES:
        raise JobError(
            f"run_jobs was called {depth} calls deep, and Python allows {limit}: a job needs "
            f"{_NEEDED_FRAMES} of them. Call it from a thread, or raise sys.setrecursionlimit."
        )
