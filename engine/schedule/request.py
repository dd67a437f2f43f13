"""One request on the host: its tokens, its counters, where it stands and how it ended.

Token ranges of a request, as half-open intervals (everything else is derived from the counters):

    0            num_cached      num_computed         len(token_ids)    num_tokens
    |--- cached ---|--- computed ---|--- known, to do ---|--- pending ---|

``pending`` tokens were sampled by a step the host has not committed yet: their values live only in
the device's token table, which is enough to launch the next step.
"""

from __future__ import annotations

import enum
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .timing import Stamps

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    import torch

    from ...grammar.interface import Grammar, Matcher
    from ...sampling.params import SamplingParams
    from ...sampling.rows import SamplingRow


class RequestStatus(enum.Enum):
    """Where a request stands: COMPILING first, if at all, then WAITING and RUNNING in turns (preemption)."""

    COMPILING = "compiling"  # its grammar is not ready; owns nothing, and the scheduler passes it over
    WAITING = "waiting"  # owns no pages and no slot
    RUNNING = "running"  # owns a slot and pages
    FINISHED = "finished"  # one terminal event was emitted; owns nothing


@dataclass(frozen=True)
class FinishReason:
    """Why a request ended.

    ``type`` is ``"stop"`` (``matched``: the token id or string), ``"length"`` (``length``: the limit)
    or ``"abort"`` (``message``).
    """

    type: str
    matched: int | str | None = None
    length: int | None = None
    message: str | None = None

    def as_dict(self) -> dict[str, object]:
        """The documented form, e.g. ``{"type": "stop", "matched": 2}``."""
        if self.type == "stop":
            return {"type": "stop", "matched": self.matched}
        if self.type == "length":
            return {"type": "length", "length": self.length}
        return {"type": "abort", "message": self.message, "status_code": None, "err_type": None}


@dataclass(frozen=True)
class LogprobOptions:
    """Which log-probabilities a request wants.

    ``prompt_start``: log-probabilities of the prompt's tokens from this one on are returned; None means none.
    ``top``: alternatives per position.
    """

    prompt_start: int | None = None
    top: int = 0


@dataclass(frozen=True)
class TokenLogprob:
    """The log-probability of one token and of its ``top`` likeliest alternatives (descending)."""

    logprob: float | None
    token_id: int
    top: tuple[tuple[float, int], ...] | None = None


@dataclass(eq=False, slots=True)
class Request:
    """A single sequence being generated. Owned by the scheduler's thread once submitted."""

    rid: str
    token_ids: array  # prompt, then committed output; array('i'): compact, and the radix tree's own form
    params: SamplingParams
    max_new_tokens: int  # effective limit: the caller's, or what fits
    stop_token_ids: frozenset[int]  # end the request when sampled
    sampling_row: SamplingRow  # slot is filled in on admission
    logprobs: LogprobOptions | None = None
    return_hidden_states: bool = False
    namespace: Hashable = None  # prefix-cache namespace: adapter, weights version
    input_embeds: torch.Tensor | None = None  # [P, H] fp32 on the CPU, what the prompt's tokens stand for

    num_prompt_tokens: int = field(init=False)
    max_num_tokens: int = field(init=False)  # prompt and output tokens at which it ends by length
    num_tokens: int = field(init=False)  # prompt and output tokens, those still on the device included
    arrival: int = field(init=False, default=-1)  # submission order, set by the scheduler
    status: RequestStatus = field(init=False, default=RequestStatus.WAITING)
    finish_reason: FinishReason | None = field(init=False, default=None)
    slot: int | None = field(init=False, default=None)
    pages: list[int] = field(init=False, default_factory=list)
    cache_node: object | None = field(init=False, default=None)  # locked node of the radix tree
    num_computed_tokens: int = field(init=False, default=0)  # KV written by launched steps
    decodes_until: int = field(init=False, default=0)  # below this num_computed it merely decodes
    num_cached_tokens: int = field(init=False, default=0)  # prefix hit of the first admission
    num_preemptions: int = field(init=False, default=0)
    num_passed_over: int = field(init=False, default=0)  # later arrivals admitted before it
    num_prompt_logprobs: int = field(init=False, default=0)  # prompt positions whose successors are scored
    is_watched: bool = field(init=False, default=False)  # somebody looks at every new token
    grammar: Grammar | None = field(init=False, default=None)  # of its constraint, once that is compiled
    forecast: Sequence[int] | None = field(init=False, default=None)  # likely next tokens; None: unknown yet
    forecast_odds: float | None = field(init=False, default=None)  # how often tokens are as forecast, lately
    drafts: Sequence[int] = field(init=False, default=())  # those that a launched step computes, unverified
    prefix_hashes: tuple[int, ...] | None = field(init=False, default=None)
    output_logprobs: list[TokenLogprob] = field(init=False, default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(init=False, default_factory=list)
    num_collected_states: int = field(init=False, default=0)  # hidden states collected before a preemption
    hidden_states: list[object] = field(init=False, default_factory=list)  # tensors [n, H], in order
    embedding: list[float] | None = field(init=False, default=None)  # in an engine that embeds
    stamps: Stamps = field(init=False, default_factory=Stamps)
    _matcher: Matcher | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.num_prompt_tokens = self.num_tokens = len(self.token_ids)
        self.max_num_tokens = self.num_prompt_tokens + max(self.max_new_tokens, 1)
        if self.logprobs is not None and self.logprobs.prompt_start is not None:
            self.num_prompt_logprobs = max(self.logprobs.prompt_start - 1, 0)  # the position before tells it

    @property
    def matcher(self) -> Matcher | None:
        """Where the committed output stands in the grammar.

        Made when first asked for, which is while the device computes the prompt: nobody waits for it.
        """
        if self._matcher is None and self.grammar is not None:
            self._matcher = self.grammar.matcher()
        return self._matcher

    @property
    def num_pending_tokens(self) -> int:
        """Output tokens whose values are not committed yet."""
        return self.num_tokens - len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        """Committed output tokens."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_remaining_tokens(self) -> int:
        """Tokens whose KV is not computed yet; 1 for a request that decodes."""
        return self.num_tokens - self.num_computed_tokens

    @property
    def output_ids(self) -> list[int]:
        """A copy of the committed output token ids."""
        return self.token_ids[self.num_prompt_tokens :].tolist()

    @property
    def is_finished(self) -> bool:
        """True once the terminal event was decided."""
        return self.finish_reason is not None

    @property
    def match_limit(self) -> int:
        """How many leading tokens may come from the prefix cache.

        At least one token is computed; positions whose hidden states, and prompt positions whose
        log-probabilities are still wanted need a computation as well.
        """
        limit = self.num_tokens - 1
        if self.return_hidden_states:
            limit = min(limit, self.num_collected_states)
        if self.wants_prompt_logprobs:
            limit = min(limit, self.num_prompt_logprobs)
        return limit

    @property
    def wants_prompt_logprobs(self) -> bool:
        """True while prompt positions remain to be scored."""
        return (
            self.logprobs is not None
            and self.logprobs.prompt_start is not None
            and self.num_prompt_logprobs < self.num_prompt_tokens - 1
        )

    def check_finish(self) -> FinishReason | None:
        """The token-level finish rule for the newest token: the length limit first, then stop tokens."""
        if len(self.token_ids) >= self.max_num_tokens:
            return FinishReason("length", length=self.max_new_tokens)
        if self.num_output_tokens and self.token_ids[-1] in self.stop_token_ids:
            return FinishReason("stop", matched=self.token_ids[-1])
        return None
