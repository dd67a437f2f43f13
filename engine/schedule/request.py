"""One request on the host: its tokens, its counters, where it stands and how it ended.

Token ranges of a request, as half-open intervals (everything else is derived from the counters):

    0            num_cached      num_computed         len(token_ids)    num_tokens
    |--- cached ---|--- computed ---|--- known, to do ---|--- pending ---|

``pending`` tokens were sampled by a step the host has not committed yet: their values live only in
the device's token table, which is enough to launch the next step.

Only what is in this file moves the counters, and for all rows of a step at once what is in ``row_loops``:
``take_up`` before a request is submitted, ``resume``, ``advance``, ``guess`` and ``decode_all`` when a step
is scheduled, ``take_all``, ``settle`` and ``truncate`` when its tokens are known, ``start_over`` in between.
Whoever calls them looks after pages and rows.
"""

from __future__ import annotations

import enum
import time
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ...cache.slot_pool import PADDING_SLOT
from .collected import Collected
from .namespace import PLAIN, Namespace
from .timing import Stamps
from .versions import Versions

if TYPE_CHECKING:
    import torch

    from ...cache.radix_cache import Prefix
    from ...sampling.params import SamplingParams
    from ...sampling.rows import SamplingRow
    from .constraint import RequestConstraint
    from .drafts.speculation import Speculation


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
    ``top``: alternatives per position. ``of``: the distribution of those of the output, ``logprobs_of``.
    """

    prompt_start: int | None = None
    top: int = 0
    of: str | None = None


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
    namespace: Namespace = PLAIN  # of the prefix cache
    input_embeds: torch.Tensor | None = None  # [P, H] fp32 on the CPU, what the prompt's tokens stand for
    prompt_keys: array | None = None  # array('i') [P], what the prompt's tokens are in the prefix cache

    num_prompt_tokens: int = field(init=False)
    max_num_tokens: int = field(init=False)  # prompt and output tokens at which it ends by length
    num_tokens: int = field(init=False)  # prompt and output tokens, those still on the device included
    arrival: int = field(init=False, default=-1)  # submission order, set by the scheduler
    status: RequestStatus = field(init=False, default=RequestStatus.WAITING)
    finish_reason: FinishReason | None = field(init=False, default=None)
    slot: int = field(init=False, default=PADDING_SLOT)  # that one: none
    pages: list[int] = field(init=False, default_factory=list)
    cache_node: Prefix | None = field(init=False, default=None)  # locked node of the radix tree
    num_computed_tokens: int = field(init=False, default=0)  # KV written by launched steps
    decodes_until: int = field(init=False, default=0)  # below this num_computed it merely decodes
    num_cached_tokens: int = field(init=False, default=0)  # prefix hit of the first admission
    num_preemptions: int = field(init=False, default=0)
    num_passed_over: int = field(init=False, default=0)  # later arrivals admitted before it
    is_watched: bool = field(init=False, default=False)  # somebody looks at every new token
    is_streamed: bool = field(init=False, default=False)  # somebody reads its tokens as they come
    constraint: RequestConstraint | None = field(init=False, default=None)  # once it is compiled
    speculation: Speculation | None = field(init=False, default=None)  # None: it never has drafts
    collected: Collected = field(init=False, default_factory=Collected)
    prefix_hashes: tuple[int, ...] | None = field(init=False, default=None)
    stamps: Stamps = field(init=False, default_factory=Stamps)
    versions: Versions = field(init=False, default_factory=lambda: Versions(0))  # of the weights that draw it

    def __post_init__(self) -> None:
        self.num_prompt_tokens = self.num_tokens = len(self.token_ids)
        self.max_num_tokens = self.num_prompt_tokens + max(self.max_new_tokens, 1)
        if self.logprobs is not None and self.logprobs.prompt_start is not None:
            self.collected.num_scored = max(self.logprobs.prompt_start - 1, 0)  # the position before tells it

    @property
    def key_ids(self) -> array:
        """The known tokens as the prefix cache tells them apart: ids, and ``prompt_keys`` in their place.

        Read only: as a rule it is ``token_ids`` itself.
        """
        if self.prompt_keys is None:
            return self.token_ids
        return self.prompt_keys + self.token_ids[self.num_prompt_tokens :]

    @property
    def is_drafting(self) -> bool:
        """Whether a launched step computes drafts, so that it is open how many tokens there are."""
        return self.speculation is not None and bool(self.speculation.drafts)

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
            limit = min(limit, self.collected.num_states)
        if self.wants_prompt_logprobs:
            limit = min(limit, self.collected.num_scored)
        return limit

    @property
    def wants_prompt_logprobs(self) -> bool:
        """True while prompt positions remain to be scored."""
        return (
            self.logprobs is not None
            and self.logprobs.prompt_start is not None
            and self.collected.num_scored < self.num_prompt_tokens - 1
        )

    @property
    def decodes_freely(self) -> bool:
        """Whether its next token is computed without a decision: see :meth:`decode_freely`."""
        return self.num_computed_tokens < self.decodes_until

    def end(self, reason: FinishReason) -> None:
        """It is finished; what steps under way still bring is nobody's."""
        self.status = RequestStatus.FINISHED
        self.finish_reason = reason
        self.stamps.finished = time.monotonic()
        if self.constraint is not None:
            self.constraint.is_lifted = True

    # ---- what moves the counters -------------------------------------------------------------------

    def take_up(self, output_ids: Iterable[int]) -> None:
        """Begin behind output that an earlier request drew for the same prompt; before it is submitted."""
        self.token_ids.extend(output_ids)
        self.num_tokens = len(self.token_ids)

    def resume(self, num_matched: int) -> None:
        """Begin to run, for the first time or again, with so many tokens' KV found in the cache."""
        self.num_computed_tokens = num_matched
        if not (self.num_preemptions or self.num_tokens > self.num_prompt_tokens):
            self.num_cached_tokens = num_matched

    def advance(self, count: int) -> bool:
        """Compute the next ``count`` tokens. True if they reach the last one: a token is drawn behind it."""
        self.num_computed_tokens += count
        samples = self.num_computed_tokens == self.num_tokens
        self.num_tokens += samples
        return samples

    def guess(self, num_drafts: int) -> None:
        """Compute the newest token of a request that decodes, and so many drafts behind it, unverified."""
        self.num_computed_tokens += 1 + num_drafts
        self.num_tokens += 1 + num_drafts
        self.examine_again()

    def decode_freely(self, room: int) -> None:
        """From here on it merely decodes, until ``room`` tokens are computed or its last one is pending."""
        self.decodes_until = min(room, self.max_num_tokens - 1)

    def examine_again(self) -> None:
        """Its next step needs a decision: it has no mere decode to do, or may do better than that."""
        self.decodes_until = 0

    def score_prompt(self, end: int) -> tuple[int, int] | None:
        """The prompt positions to score in a step that computes tokens up to ``end``; counted as scored."""
        if not self.wants_prompt_logprobs:
            return None
        first, last = self.collected.num_scored, min(end, self.num_prompt_tokens - 1)
        if first >= last:
            return None
        self.collected.num_scored = last
        return first, last

    def start_over(self) -> None:
        """Lose everything computed (preemption), but not what was collected of it."""
        self.collected.num_states = max(self.collected.num_states, self.num_computed_tokens)
        self.num_computed_tokens = 0
        self.examine_again()
        self.num_preemptions += 1

    def settle(self, start: int, kept: int) -> None:
        """Verified drafts: of the positions from ``start`` on ``kept`` were right, and bring a token more."""
        self.num_tokens = start + kept + 1
        if self.status is RequestStatus.RUNNING:
            self.num_computed_tokens = start + kept
        else:  # preempted meanwhile
            self.collected.num_states = min(self.collected.num_states, start + kept)

    def truncate(self, num_output_tokens: int) -> None:
        """Forget committed output behind the first ``num_output_tokens`` of a request that has ended."""
        del self.token_ids[self.num_prompt_tokens + num_output_tokens :]
        del self.collected.output_logprobs[num_output_tokens:]
        del self.collected.sampling_masks[num_output_tokens:]

    def check_finish(self) -> FinishReason | None:
        """The token-level finish rule for the newest token: the length limit first, then stop tokens."""
        if len(self.token_ids) >= self.max_num_tokens:
            return FinishReason("length", length=self.max_new_tokens)
        if self.num_output_tokens and self.token_ids[-1] in self.stop_token_ids:
            return FinishReason("stop", matched=self.token_ids[-1])
        return None
