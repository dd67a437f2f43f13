"""Which distribution the log-probabilities of sampled tokens are of: the values of ``logprobs_of``.

With z the logits as the model computed them, z' the same after the sampler's edits (biases, penalties,
``min_new_tokens``, the caller's processor, the grammar's mask) and T the temperature:

    None        the documented values: log_softmax(z' / T), less the log of the mass that top-p alone keeps.
                top-k and min-p are not reflected.
    "sampled"   what the token was drawn from: log_softmax(z' / T) over the tokens that top-k, top-p and
                min-p all keep.
    "tempered"  log_softmax(z / T), over the whole vocabulary: what a trainer computes that knows the
                temperature and nothing else of the request.
    "raw"       log_softmax(z).

A greedy row has no distribution to be drawn from: there "sampled" and the documented values are
log_softmax(z'). For "tempered" T is what was asked for, and 1 for a temperature that means greedy decoding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from .params import GREEDY_TEMPERATURE, SamplingParams

if TYPE_CHECKING:
    from typing import TypeAlias

    LogprobsOf: TypeAlias = Literal["sampled", "tempered", "raw"]

LOGPROBS_OF = ("sampled", "tempered", "raw")

NO_CUT, TOP_P_CUT, KEPT_CUT = range(3)
"""Which filters the log-probabilities of a filtered row go by: none, top-p alone, all of them."""

OF_MODEL, OF_KEPT, MASKED = 1, 2, 4
"""Bits of what a row asks for: log-probabilities of the model's own logits; those of the tokens that all
filters keep; which tokens are kept, where some may not be."""


def asked_bits(logprobs_of: str | None, *, masked: bool) -> int:
    """What a row asks for; ``logprobs_of`` None: no log-probabilities, or the documented ones."""
    of_model = logprobs_of in ("tempered", "raw")
    return OF_MODEL * of_model | OF_KEPT * (logprobs_of == "sampled") | MASKED * masked


def unedited_temperature(params: SamplingParams, logprobs_of: str | None) -> float:
    """What the model's own logits are divided by."""
    if logprobs_of == "raw" or params.temperature < GREEDY_TEMPERATURE:
        return 1.0
    return params.temperature


def cuts_of(records: np.ndarray) -> np.ndarray:
    """``NO_CUT``, ``TOP_P_CUT`` or ``KEPT_CUT`` of rows that filters apply to, [R] uint8."""
    cuts = (records["logprobs"] & (records["top_p"] < 1)).view(np.uint8)  # true is TOP_P_CUT
    cuts[records["asks"] & OF_MODEL > 0] = NO_CUT
    cuts[records["asks"] & OF_KEPT > 0] = KEPT_CUT
    return cuts
