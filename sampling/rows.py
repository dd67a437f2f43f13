"""One row of logits and whose it is; a subset of a tensor's rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter
from typing import Any

import numpy as np
import torch

from .custom import LogitProcessor
from .params import CONSTRAINTS, SamplingParams
from .records import pack, unpack


@dataclass(frozen=True)
class SamplingRow:
    """One row of logits and whose it is.

    What batches need of it is computed once; ``dataclasses.replace`` makes a row that knows nothing yet.

    Attributes:
        params: the request's parameters.
        seed: its seed, a signed 64-bit integer (drawn by the engine if the user gave none).
        slot: row of the token table that holds its tokens.
        prompt_len: how many of those tokens are the prompt.
        banned_until_min: token ids that end the request; impossible while fewer than
            ``params.min_new_tokens`` tokens were generated.
        logprobs: report the log-probability of the sampled token.
        top_logprobs: report this many of the most probable tokens too; only read if ``logprobs``.
        logprobs_of: the distribution that both are of, see ``distributions``.
        sampling_mask: report which tokens were kept.
        processor: the caller's own edit of the logits.
        custom_params: what it is told about the request; a dict of the request's own, for it may write to it.
    """

    params: SamplingParams
    seed: int
    slot: int
    prompt_len: int
    banned_until_min: tuple[int, ...] = ()
    logprobs: bool = False
    top_logprobs: int = 0
    logprobs_of: str | None = None
    sampling_mask: bool = False
    processor: LogitProcessor | None = None
    custom_params: dict[str, Any] = field(default_factory=dict, compare=False)

    @cached_property
    def masked(self) -> bool:
        """It wants to know which tokens are kept, and some may not be.

        Filters, a constraint, a processor or ``min_new_tokens`` may leave tokens out.
        """
        params = self.params
        filtered = params.top_k > 1 or params.top_p < 1 or params.min_p > 0
        return self.sampling_mask and (
            (filtered and not params.is_greedy)
            or self.processor is not None
            or bool(params.min_new_tokens and self.banned_until_min)
            or any(getattr(params, kind) is not None for kind in CONSTRAINTS)
        )

    @cached_property
    def is_argmax(self) -> bool:
        """The row wants the highest of the model's own logits, unedited, and nothing else of them."""
        params = self.params
        return (
            params.is_greedy
            and self.processor is None
            and not (self.logprobs or self.masked or params.logit_bias)
            and not (params.min_new_tokens and self.banned_until_min)
            and not (params.frequency_penalty or params.presence_penalty)
            and params.repetition_penalty == 1
        )

    @cached_property
    def record(self) -> bytes:
        """All of it that has a fixed size, see ``records``."""
        return pack(
            self.params,
            seed=self.seed,
            slot=self.slot,
            prompt_len=self.prompt_len,
            logprobs=self.logprobs,
            top_logprobs=self.top_logprobs,
            logprobs_of=self.logprobs_of,
            masked=self.masked,
            bans=bool(self.banned_until_min),
            processed=self.processor is not None,
        )


# Not loops: a step may have a thousand rows, and their set changes whenever one of them ends.
_is_argmax = attrgetter("is_argmax")
_record = attrgetter("record")


def all_argmax(rows: Iterable[SamplingRow]) -> bool:
    """Whether every row wants just the highest of the model's own logits (grammar masks aside)."""
    return all(map(_is_argmax, rows))


def records_of(rows: Iterable[SamplingRow]) -> np.ndarray:
    """The records of ``rows`` as an array of ``records.RECORD``."""
    return unpack(map(_record, rows))


@dataclass(frozen=True)
class Rows:
    """A subset of a tensor's rows: ``index`` [count] int64, or None for all of them (then no copies)."""

    index: torch.Tensor | None
    count: int

    @classmethod
    def where(cls, mask: np.ndarray) -> Rows:
        """The rows of a tensor where ``mask`` [total] bool is true."""
        index = np.flatnonzero(mask)
        whole = len(index) == len(mask)
        return cls(None if whole else torch.from_numpy(index), len(index))

    def take(self, values: torch.Tensor) -> torch.Tensor:
        """The rows of ``values`` [total, ...] -> [count, ...]; ``values`` itself if all."""
        return values if self.index is None else values.index_select(0, self.index)

    def put(self, target: torch.Tensor, values: torch.Tensor) -> None:
        """Write ``values`` [count, ...] into these rows of ``target`` [total, ...]."""
        if self.index is None:
            target.copy_(values)
        else:
            target.index_copy_(0, self.index, values)
