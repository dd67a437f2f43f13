"""What of a row stays the same as long as it runs, packed: a batch is put together from these in bulk.

Nothing in a record depends on the vocabulary, so engines with different ones may read the same.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

import numpy as np

from .distributions import asked_bits, unedited_temperature
from .params import SamplingParams
from .seeds import stream_key

_MAX_TEMPERATURE = 1e30  # beyond it a banned token's -inf would be divided by fp32 infinity, giving NaN
_WIDEST = 2**31  # no vocabulary is wider

_FIELDS = {
    "key": "q",  # start of the random stream; 0 in greedy rows
    "slot": "q",
    "prompt_len": "q",
    "top_k": "q",  # 0: off
    "top_p": "d",
    "min_p": "d",
    "temperature": "f",  # 1 in greedy rows
    "model_temperature": "f",  # of log-probabilities of the model's own logits
    "frequency": "f",
    "presence": "f",
    "repetition": "f",
    "top_logprobs": "i",
    "greedy": "?",
    "logprobs": "?",
    "asks": "B",  # bits of ``distributions``: what few rows ask for, so that others are looked at once
    "biased": "?",
    "bans": "?",
    "linear": "?",  # has a frequency or presence penalty
    "repeats": "?",  # has a repetition penalty
    "processed": "?",
}
_PACKED = struct.Struct("@" + "".join(_FIELDS.values()) + "0q")  # padded at the end to a multiple of 8 bytes

RECORD = np.dtype(list(_FIELDS.items()), align=True)
"""A record as an element of an array: a C struct; ``struct`` and NumPy know its types by the same letters."""


def pack(
    params: SamplingParams,
    *,
    seed: int,
    slot: int,
    prompt_len: int,
    logprobs: bool,
    top_logprobs: int,
    logprobs_of: str | None,
    masked: bool,
    bans: bool,
    processed: bool,
) -> bytes:
    """The record of a row.

    ``bans``: it has tokens that end it, ``processed``: a processor of its own, ``masked``: it wants to know
    which tokens are kept, and some may not be.
    """
    greedy = params.is_greedy
    return _PACKED.pack(
        0 if greedy else stream_key(seed),
        slot,
        prompt_len,
        min(max(params.top_k, 0), _WIDEST),
        params.top_p,
        params.min_p,
        1.0 if greedy else min(params.temperature, _MAX_TEMPERATURE),
        min(unedited_temperature(params, logprobs_of), _MAX_TEMPERATURE),
        params.frequency_penalty,
        params.presence_penalty,
        params.repetition_penalty,
        top_logprobs,
        greedy,
        logprobs,
        asked_bits(logprobs_of if logprobs else None, masked=masked),
        bool(params.logit_bias),
        bans and params.min_new_tokens > 0,
        params.frequency_penalty != 0 or params.presence_penalty != 0,
        params.repetition_penalty != 1,
        processed,
    )


def unpack(records: Iterable[bytes]) -> np.ndarray:
    """The records of some rows as an array of ``RECORD``, read only."""
    return np.frombuffer(b"".join(records), RECORD)
