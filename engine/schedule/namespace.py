"""Which requests may share what was computed of equal tokens."""

from __future__ import annotations

from typing import NamedTuple


class Namespace(NamedTuple):
    """Everything besides a request's tokens that its keys and values depend on: a tree of the prefix cache.

    Attributes:
        adapter: name of the adapter that computes it; None: none does.
        weights_version: how often the weights had been replaced when it began to be computed: keys and values
            of other weights are never found.
        embeds: digest of the vectors that stand for the prompt's tokens; None: they stand for themselves.
    """

    adapter: str | None = None
    weights_version: int = 0
    embeds: bytes | None = None


PLAIN = Namespace()
