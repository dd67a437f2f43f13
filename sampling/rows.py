"""One row of logits and whose it is; a subset of a tensor's rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from .custom import LogitProcessor
from .params import SamplingParams


@dataclass(frozen=True)
class SamplingRow:
    """One row of logits and whose it is.

    Attributes:
        params: the request's parameters.
        seed: its seed, a signed 64-bit integer (drawn by the engine if the user gave none).
        slot: row of the token table that holds its tokens.
        prompt_len: how many of those tokens are the prompt.
        banned_until_min: token ids that end the request; impossible while fewer than
            ``params.min_new_tokens`` tokens were generated.
        logprobs: report the log-probability of the sampled token.
        top_logprobs: report this many of the most probable tokens too; only read if ``logprobs``.
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
    processor: LogitProcessor | None = None
    custom_params: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def is_argmax(self) -> bool:
        """The row wants the highest of the model's own logits, unedited, and no log-probabilities."""
        params = self.params
        return (
            params.is_greedy
            and self.processor is None
            and not (self.logprobs or params.logit_bias)
            and not (params.min_new_tokens and self.banned_until_min)
            and not (params.frequency_penalty or params.presence_penalty)
            and params.repetition_penalty == 1
        )


@dataclass(frozen=True)
class Rows:
    """A subset of a tensor's rows: ``index`` [count] int64, or None for all of them (then no copies)."""

    index: torch.Tensor | None
    count: int

    @classmethod
    def build(cls, index: Sequence[int], total: int) -> Rows:
        """The rows ``index`` (ascending) of a tensor of ``total`` rows."""
        whole = len(index) == total
        return cls(None if whole else torch.tensor(index, dtype=torch.int64, device="cpu"), len(index))

    def take(self, values: torch.Tensor) -> torch.Tensor:
        """The rows of ``values`` [total, ...] -> [count, ...]; ``values`` itself if all."""
        return values if self.index is None else values.index_select(0, self.index)

    def put(self, target: torch.Tensor, values: torch.Tensor) -> None:
        """Write ``values`` [count, ...] into these rows of ``target`` [total, ...]."""
        if self.index is None:
            target.copy_(values)
        else:
            target.index_copy_(0, self.index, values)
