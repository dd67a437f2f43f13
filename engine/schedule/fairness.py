"""Who is considered first, so that no policy starves anybody."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...cache.radix_cache import RadixCache
    from .policies import Policy
    from .request import Request

# A waiting request that this many younger ones have overtaken goes first, whatever the policy says.
MAX_PASSED_OVER = 64


def consideration_order(waiting: Sequence[Request], policy: Policy, cache: RadixCache) -> Iterable[Request]:
    """Requests that were preempted or overtaken too often by age, then the rest by policy."""
    first = [r for r in waiting if r.num_preemptions or r.num_passed_over >= MAX_PASSED_OVER]
    if not first:
        return policy.order(waiting, cache)
    chosen = {id(request) for request in first}
    return first + policy.order([r for r in waiting if id(r) not in chosen], cache)


def count_passed_over(waiting: Iterable[Request], admitted: Iterable[Request]) -> None:
    """Count, for each of ``waiting`` (by age), the younger ones that were admitted."""
    arrivals = sorted(request.arrival for request in admitted)
    for request in waiting:
        if request.arrival > arrivals[-1]:
            break
        request.num_passed_over += len(arrivals) - bisect.bisect(arrivals, request.arrival)
