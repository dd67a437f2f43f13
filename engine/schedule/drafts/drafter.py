"""Drafts: tokens that somebody forecasts are computed in one pass, and kept as far as they are drawn.

A row of the batch computes all drafts of a request at once. A token is drawn after each as if the draft had
been drawn, with the seed and under the mask that belong there, and what was drawn counts up to the first that
differs. So tokens, draws and log-probabilities are those of one step per token, whoever forecasts.

    known      pending?    drafts
    t0 .. tn | (tn+1)   |  d1  d2  d3        the row computes tn (or tn+1), d1, d2, d3
                        |  s1  s2  s3  s4    drawn: s1 always counts, s2 if s1 == d1, s3 if also s2 == d2, ...
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from .speculation import Speculation

if TYPE_CHECKING:
    from ..batch import Batch
    from ..request import Request
    from .proposer import Proposer

T = TypeVar("T")

MAX_DRAFTS = 32
_LEAST = 2  # drafts that are worth a row of several tokens
_MEMORY = 8  # forecasts that the odds of a request go by
_LONG_MEMORY = 64  # and those of requests that are new
_TOGETHER = 1.2  # tokens that a row with drafts must promise where the step is waited for
_ALONE = 3.0  # and where the others go on


class Verdict(NamedTuple):
    """What became of a step's drafts.

    ``rejected``: indices of drawn tokens that stand behind a draft which was not drawn. ``surplus``: by
    request, how many of the step's last positions were computed for nothing.
    """

    rejected: frozenset[int]
    surplus: Mapping[Request, int]

    def kept(self, values: list[T]) -> list[T]:
        """Per-token values without those of rejected tokens."""
        if not self.rejected:
            return values
        return [value for index, value in enumerate(values) if index not in self.rejected]


NO_VERDICT = Verdict(frozenset(), {})


class Drafter:
    """Asks proposers for forecasts, decides which are worth a row, and finds out which came true.

    Args:
        proposers: asked in this order; the first forecast that is worth a row counts.
        max_rows: tokens that a step may draw.
        on_gpu: steps are computed on a GPU.
    """

    def __init__(self, proposers: Sequence[Proposer], max_rows: int, *, on_gpu: bool) -> None:
        self.max_rows = max_rows
        self._row_cost = _gpu_row_cost if on_gpu else _cpu_row_cost
        self._proposers = tuple(proposers)
        self._odds = [0.5] * len(self._proposers)  # of a request of which nothing is known

    def begin(self, request: Request) -> None:
        """Let a request that starts to run speculate, if somebody may have forecasts for it."""
        if request.speculation is None:  # else it was preempted
            takers = tuple(i for i, proposer in enumerate(self._proposers) if proposer.takes(request))
            request.speculation = Speculation(takers) if takers else None

    def look_ahead(self, request: Request, state: Speculation) -> None:
        """Note what is likely to follow the committed tokens of a request, whose ``state`` it is."""
        if state.forecast:
            self._learn(state, [request.token_ids[-1] == state.forecast[0]])
        state.forecast = ()
        for place in state.proposers:
            tokens = self._proposers[place].look_ahead(request)[:MAX_DRAFTS]
            if len(tokens) > len(state.forecast):
                state.forecast, state.source = tokens, place
            if len(state.forecast) >= _LEAST:
                break

    def plan(self, running: Collection[Request]) -> Mapping[Request, int]:
        """How many drafts are worth their rows in the next step, by request, where there are any.

        A request whose drafts are under way misses the steps until they are verified, so it has to gain more.
        If drafts are many, nobody goes on without them: then the step is waited for, which costs less.
        """
        num_running = len(running)
        promises: dict[Request, tuple[int, float]] = {}
        for request in running:
            state = request.speculation
            if state is None or state.drafts:
                continue
            if state.forecast is None:
                self.look_ahead(request, state)
            if state.forecast:
                length = len(state.forecast) - request.num_pending_tokens
                promises[request] = self._promise(length, state, num_running)
        gain = sum(tokens - 1 for _, tokens in promises.values() if tokens >= _TOGETHER)
        least = _TOGETHER if gain >= num_running * (0.2 + 1.3 * _crowd(num_running)) else _ALONE
        return {request: count for request, (count, tokens) in promises.items() if tokens >= least}

    def drafts(self, request: Request, state: Speculation, count: int) -> Sequence[int]:
        """At most ``count`` drafts behind the newest token of a decoding request; possibly none."""
        count = min(count, request.max_num_tokens - request.num_tokens - 1)
        if not state.forecast or count < _LEAST:
            return ()
        pending = request.num_pending_tokens
        return state.forecast[pending : pending + count]

    def _promise(self, length: int, state: Speculation, num_running: int) -> tuple[int, float]:
        """How many of ``length`` drafts are worth their rows, and how many tokens the row will bring then."""
        odds = state.odds.get(state.source, self._odds[state.source])
        odds = min(max(odds, 0.01), 0.99)
        worthwhile = math.log(self._row_cost(num_running)) / math.log(odds)
        count = max(0, min(length, int(worthwhile)))
        return count, (1 - odds ** (count + 1)) / (1 - odds)

    def verify(self, batch: Batch, token_ids: Sequence[int]) -> Verdict:
        """Compare drafts with what was drawn, and put the counters of their requests right."""
        if not batch.has_drafts:
            return NO_VERDICT
        rejected: set[int] = set()
        surplus: dict[Request, int] = {}
        index = len(batch.decodes.requests)
        for row in batch.other_rows:
            state, count = row.request.speculation, len(row.drafts)
            if count and state is not None:
                kept = 1
                while kept <= count and token_ids[index + kept - 1] == row.drafts[kept - 1]:
                    kept += 1
                rejected.update(range(index + kept, index + 1 + count))
                surplus[row.request] = count + 1 - kept
                self._learn(state, [i < kept for i in range(1, min(kept, count) + 1)])
                state.drafts = state.forecast = ()
                row.request.settle(row.start, kept)
            index += row.num_samples
        return Verdict(frozenset(rejected), surplus)

    def _learn(self, state: Speculation, came_true: Sequence[bool]) -> None:
        """Take note of tokens that the source of its forecast foretold, or did not."""
        source = state.source
        odds = state.odds.get(source, self._odds[source])
        for one in came_true:
            odds += (one - odds) / _MEMORY
            self._odds[source] += (one - self._odds[source]) / _LONG_MEMORY
        state.odds[source] = odds


def _crowd(num_running: int) -> float:
    """0 to 1: how much waiting for a step costs, in which the host has work for each request."""
    return min(1.0, num_running / 64)


def _gpu_row_cost(num_running: int) -> float:
    """What another row costs, in shares of what a token costs: the weights are read anyway."""
    return 0.2 * min(1.0, num_running / 64)


def _cpu_row_cost(num_running: int) -> float:
    """The same for a CPU, which takes as long to read the weights as to compute about 6 rows."""
    return num_running / (num_running + 6)
