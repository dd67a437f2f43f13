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


def has_unedited(logprobs_of: str | None) -> bool:
    """Whether the log-probabilities are of the logits as the model computed them."""
    return logprobs_of in ("tempered", "raw")


def unedited_temperature(params: SamplingParams, logprobs_of: str | None) -> float:
    """What the model's own logits are divided by."""
    if logprobs_of == "raw" or params.temperature < GREEDY_TEMPERATURE:
        return 1.0
    return params.temperature


def cuts_of(records: np.ndarray) -> np.ndarray:
    """``NO_CUT``, ``TOP_P_CUT`` or ``KEPT_CUT`` of rows that filters apply to, [R] uint8."""
    asking = records["logprobs"] & ~records["unedited"]
    cuts = np.where(asking & (records["top_p"] < 1), TOP_P_CUT, NO_CUT)
    cuts[asking & records["of_kept"]] = KEPT_CUT
    return cuts.astype(np.uint8)
