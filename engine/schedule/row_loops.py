"""The loops over every row of a step: all the work per row that steady decoding has, compiled if possible.

The functions named ``…_reference`` say what is done. ``csrc/rows.c`` does the same without the interpreter,
in a fraction of the time; like the C kernels it is optional.
"""

from __future__ import annotations

import importlib
from array import array
from collections.abc import Callable, Iterator
from functools import partial
from operator import attrgetter
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .request import Request


def decode_all_reference(running: list[Request], decodes: list[Request]) -> Iterator[Request]:
    """Compute the newest token of every request that decodes freely, and list them in ``decodes``.

    Yields the others, each before those behind it are looked at; the list may become shorter meanwhile.
    """
    for request in running:
        start = request.num_computed_tokens
        if start < request.decodes_until:
            request.num_computed_tokens = start + 1
            request.num_tokens += 1
            decodes.append(request)
        else:
            yield request


def take_all_reference(requests: list[Request], token_ids: list[int]) -> Iterator[Request]:
    """Commit a drawn token to each of ``requests``; one with verified drafts stands there several times.

    Yields those that need a look before the next is served: ended ones, which take no token, and those that
    it may end, that a constraint binds or that somebody watches. There must be as many tokens as requests.
    """
    for request, token_id in zip(requests, token_ids, strict=True):
        if request.finish_reason is not None:
            yield request
            continue
        known = request.token_ids
        known.append(token_id)
        if (
            len(known) >= request.max_num_tokens
            or token_id in request.stop_token_ids
            or request.is_watched
            or request.constraint is not None
        ):
            yield request


def gather_reference(name: str, requests: list[Request]) -> list[Any]:
    """The attribute ``name`` of each of these requests."""
    return list(map(attrgetter(name), requests))


def gather_ints_reference(name: str, requests: list[Request], shift: int) -> array:
    """An integer of each request, with ``shift`` added, as an ``array('i')``."""
    return array("i", [value + shift for value in map(attrgetter(name), requests)])


def load() -> ModuleType | None:
    """The compiled loops; None where they were not built."""
    try:
        return importlib.import_module("._rows", __package__)
    except ImportError:
        return None


COUNTERS = ("num_computed_tokens", "decodes_until", "num_tokens")
READ_AT_COMMIT = (
    "finish_reason",
    "token_ids",
    "max_num_tokens",
    "stop_token_ids",
    "is_watched",
    "constraint",
)

compiled = load()
decode_all: Callable[[list[Request], list[Request]], Iterator[Request]] = decode_all_reference
take_all: Callable[[list[Request], list[int]], Iterator[Request]] = take_all_reference
gather, gather_ints = gather_reference, gather_ints_reference
if compiled is not None:
    decode_all = partial(compiled.decode_all, COUNTERS)
    take_all = partial(compiled.take_all, READ_AT_COMMIT)
    gather, gather_ints = compiled.gather, compiled.gather_ints
