"""Orders in which waiting requests are considered: small objects, apart from the budget.

The names are those of the documented ``schedule_policy`` option. A policy only orders; who fits is the
scheduler's business, and so is fairness (requests passed over too often go first whatever the policy).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from ...errors import ConfigError

if TYPE_CHECKING:
    from ...cache.radix_cache import Match, RadixCache
    from .request import Request

# Matching every waiting prompt against the tree costs more than it brings in longer queues.
MAX_MATCHED_QUEUE = 128

_AFTER_CHILDREN = (1, 0)


class Policy(Protocol):
    """Orders the waiting requests; must be a permutation of them and deterministic."""

    def order(self, waiting: Sequence[Request], cache: RadixCache) -> list[Request]:
        """Return ``waiting`` in the order of consideration. ``waiting`` comes in arrival order."""


class FirstComeFirstServed:
    """``fcfs``: arrival order."""

    def order(self, waiting: Sequence[Request], cache: RadixCache) -> list[Request]:  # noqa: ARG002
        """See :class:`Policy`."""
        return list(waiting)


class LongestPrefixMatch:
    """``lpm``: longest cached prefix first, so that cached pages are used before they are evicted.

    Falls back to arrival order in queues longer than ``MAX_MATCHED_QUEUE``.
    """

    def order(self, waiting: Sequence[Request], cache: RadixCache) -> list[Request]:
        """See :class:`Policy`."""
        if len(waiting) > MAX_MATCHED_QUEUE:
            return list(waiting)
        return sorted(waiting, key=lambda request: -_match(request, cache).num_tokens)


class DepthFirstWeight:
    """``dfs-weight``: walk the tree depth first, heavier subtrees (more waiting requests) first.

    Requests come out deepest first, so that a branch is finished before its pages are needed elsewhere.
    """

    def order(self, waiting: Sequence[Request], cache: RadixCache) -> list[Request]:
        """See :class:`Policy`."""
        paths = [cache.path(_match(request, cache).node) for request in waiting]
        weight = Counter(path[:depth] for path in paths for depth in range(1, len(path) + 1))
        # Heavier subtree first, then older node; the sentinel sorts a node's own requests after those below.
        keys = [
            (*((-weight[path[: i + 1]], node) for i, node in enumerate(path)), _AFTER_CHILDREN)
            for path in paths
        ]
        return [waiting[i] for i in sorted(range(len(waiting)), key=keys.__getitem__)]


class LongestOutputFirst:
    """``lof``: largest ``max_new_tokens`` first, so that long answers do not straggle at the end."""

    def order(self, waiting: Sequence[Request], cache: RadixCache) -> list[Request]:  # noqa: ARG002
        """See :class:`Policy`."""
        return sorted(waiting, key=lambda request: -request.max_new_tokens)


class RandomOrder:
    """``random``: a shuffle, repeatable for a given engine seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def order(self, waiting: Sequence[Request], cache: RadixCache) -> list[Request]:  # noqa: ARG002
        """See :class:`Policy`."""
        shuffled = list(waiting)
        self._random.shuffle(shuffled)
        return shuffled


_POLICIES: dict[str, Callable[[int], Policy]] = {
    "lpm": lambda seed: LongestPrefixMatch(),  # noqa: ARG005
    "dfs-weight": lambda seed: DepthFirstWeight(),  # noqa: ARG005
    "fcfs": lambda seed: FirstComeFirstServed(),  # noqa: ARG005
    "lof": lambda seed: LongestOutputFirst(),  # noqa: ARG005
    "random": RandomOrder,
}
POLICY_NAMES = tuple(_POLICIES)


def make_policy(name: str, seed: int = 0) -> Policy:
    """Build a policy by its option name. Raises ConfigError for an unknown one."""
    if name not in _POLICIES:
        raise ConfigError(f"Unknown schedule_policy: policy={name!r}. Allowed: {', '.join(POLICY_NAMES)}.")
    return _POLICIES[name](seed)


def _match(request: Request, cache: RadixCache) -> Match:
    return cache.match(request.key_ids, request.match_limit, request.namespace)
