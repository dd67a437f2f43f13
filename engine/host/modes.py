"""Modes of torch that the host has set for its own thread: none of them is ours.

Our threads never see them. What runs on a caller's thread is shielded here: a prompt of vectors is read
there, and an engine driven by hand computes there. Defaults of the whole process, the dtype above all, are
met by naming dtype and device wherever a tensor is made.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch

from .side_thread import in_thread

T = TypeVar("T")


def on_plain_thread(function: Callable[..., T], *args: Any) -> T:
    """``function(*args)`` on a thread of its own, which has no modes; returns or raises what it does."""
    return in_thread(function, *args).result()


@contextlib.contextmanager
def shielded() -> Iterator[None]:
    """A block in which the caller's autocast does not apply; steps set their grad mode themselves.

    Modes that watch or replace every operation (TorchFunctionMode, TorchDispatchMode) are left to work: who
    steps by hand inside one means it.
    """
    with torch.autocast("cpu", enabled=False):
        if torch.cuda.is_initialized():  # to ask about it otherwise would wake it
            with torch.autocast("cuda", enabled=False):
                yield
        else:
            yield
