"""The time of a decode step, from the times at which one request of a batch gets its tokens.

A difference of two runs, t(256 out) - t(128 out), has the scatter of both in it: where 128 steps take a fifth
of a second, runs came out between 0.5 and 5.1 ms a step (Q05B in h100_history.jsonl, whose weights and cache
alone take 1.0 ms to read), and it can be negative. Times between tokens are of the steps themselves.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterable, Iterator
from typing import Any

from h100_workloads import Requests


def time_step(engine: Any, requests: Requests, first: int, last: int) -> float:
    """Seconds per step while ``requests`` decode side by side: the median of the times between two tokens.

    The last request is streamed to the calling thread, where tokens are stamped as they come; it is admitted
    last, so that no prompt is left when it decodes. What counts is between its tokens ``first`` and ``last``;
    all requests are aborted then. Outputs have to be longer: RuntimeError if one has ended. Where the reader
    missed a token, the time between those it saw is divided among them.
    """
    params = [{"temperature": 0, "max_new_tokens": n, "ignore_eos": True} for n in requests.output_lengths]
    final = len(params) - 1
    handles = [
        engine.submit(input_ids=prompt, sampling_params=params[i], stream=i == final)
        for i, prompt in enumerate(requests.prompts)
    ]
    try:
        stamps = list(_stamps(handles[-1], first, last))
        if any(handle.done() for handle in handles):
            raise RuntimeError("Requests ended before the steps were timed.")
    finally:
        for handle in handles:
            handle.abort()
    for handle in handles:
        handle.result()
    return median_gap(stamps)


def median_gap(stamps: Iterable[tuple[int, float]]) -> float:
    """The median time per token of (tokens so far, time), each token counted once."""
    gaps: list[float] = []
    for (count, time_before), (count_after, time_after) in itertools.pairwise(stamps):
        tokens = count_after - count
        gaps += [(time_after - time_before) / tokens] * tokens
    return statistics.median(gaps)


def _stamps(handle: Any, first: int, last: int) -> Iterator[tuple[int, float]]:
    for output in handle:
        now, count = time.perf_counter(), len(output.token_ids)
        if count >= first:
            yield count, now
        if count >= last:
            return
