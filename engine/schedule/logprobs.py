"""Log-probabilities of tokens: of drawn ones packed, for as long as nobody looks.

A step may draw a thousand tokens with some alternatives each, and most outputs are looked at once, at the
end and on another thread. So a drawn token's are kept as bytes: pairs of fp32 and int32, a log-probability
and an id, the token's own first, then those of its alternatives. They are a copy of the token's part of the
step's arrays: a request that lives long keeps 8 bytes a pair, and nothing of its batch mates.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from ...sampling.rows import SamplingRow

PackedLogprob = bytes
"""A drawn token's pairs; all tokens of a request have as many."""

_PAIRS = np.dtype([("logprob", np.float32), ("token_id", np.int32)])


class TokenLogprob(NamedTuple):
    """The log-probability of one token and of its ``top`` likeliest alternatives (descending)."""

    logprob: float | None
    token_id: int
    top: tuple[tuple[float, int], ...] | None = None


def pack_logprobs(
    rows: Sequence[SamplingRow],
    token_ids: np.ndarray,
    logprobs: np.ndarray,
    top_values: np.ndarray | None = None,
    top_ids: np.ndarray | None = None,
) -> list[PackedLogprob | None]:
    """Those of a step's S drawn tokens, each as its row asks for; None where it does not.

    Args:
        rows: how each is drawn; what they ask for beyond K there is not.
        token_ids: [S] integers.
        logprobs: [S] fp32.
        top_values, top_ids: [S, K] fp32 and integers, descending; None if K is 0.
    """
    width = 1 if top_ids is None else 1 + top_ids.shape[1]
    pairs = np.empty((len(rows), width), dtype=_PAIRS)
    values, ids = pairs["logprob"], pairs["token_id"]
    values[:, 0], ids[:, 0] = logprobs, token_ids
    if top_values is not None:
        values[:, 1:], ids[:, 1:] = top_values, top_ids
    size = _PAIRS.itemsize
    each = struct.iter_unpack(f"{width * size}s", pairs.tobytes())
    return [
        packed[: size + size * row.top_logprobs] if row.logprobs else None
        for (packed,), row in zip(each, rows)
    ]


def unpack_logprobs(packed: Iterable[PackedLogprob]) -> tuple[list[float], list[int]]:
    """Log-probabilities and ids of all pairs, one token's after another's."""
    pairs = np.frombuffer(b"".join(packed), _PAIRS)
    return pairs["logprob"].tolist(), pairs["token_id"].tolist()
