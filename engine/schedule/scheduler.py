"""Continuous batching: which tokens of which requests the next step computes.

There is no prefill phase and no decode phase. Every running request has ``num_computed_tokens`` chasing
``num_tokens``, and a step gives each some tokens within a budget. A long prompt in pieces, a prefix hit, a
mixed batch, a preempted request starting over: all the same move.

Pages are taken on demand. When they run out, cached pages nobody uses are evicted, then the youngest
running request is preempted and will recompute (mostly from the cache). Progress is certain because the
oldest running request is never preempted for a younger one, and a request that could not live alone in
an empty pool is refused before it gets here.

This module knows token ids and page ids only; it imports no torch.
"""

from __future__ import annotations

import bisect
import time
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, replace
from operator import attrgetter

from ...cache.page_pool import PagePool
from ...cache.radix_cache import Match, Prefix, RadixCache
from ...cache.slot_pool import PADDING_SLOT, SlotPool
from .batch import Batch, BatchRow, PageWrite, StepResult, TokenWrite
from .batch_builder import BatchBuilder
from .collecting import collect
from .drafts.drafter import NO_VERDICT, Drafter, Verdict
from .fairness import consideration_order, count_passed_over
from .policies import Policy
from .prefill_budget import PrefillBudget
from .prefix_index import PrefixIndex
from .request import FinishReason, Request, RequestStatus
from .row_loops import decode_all, take_all


@dataclass
class SchedulerStats:
    """Counters since the start (tokens, requests); ``num_prompt_tokens_*`` split what admission found."""

    num_steps: int = 0
    num_computed_tokens: int = 0
    num_prompt_tokens_cached: int = 0
    num_prompt_tokens_computed: int = 0
    num_generated_tokens: int = 0
    num_preemptions: int = 0
    num_finished: int = 0


_arrival = attrgetter("arrival")


class Scheduler:
    """Owns the waiting and running requests and every decision about pages.

    Args:
        pool: page ids and reference counts.
        cache: the prefix tree over the same pool.
        slots: rows of the device's token and page tables; bounds how many requests run.
        page_size: tokens per page.
        policy: order of consideration of waiting requests.
        chunked_prefill_size: prompt tokens a step may compute, in pieces; None computes prompts whole.
        max_prefill_tokens: prompt tokens a step may compute; one prompt may exceed it when whole.
        stream_prefill_size: prompt tokens of a step while somebody streams and little waits; None: no limit
            of its own.
        drafter: decides which guesses of next tokens are computed; None: one token at a time.
        even_steps: count decodes against the prompt tokens of a step (down to half of them), so that steps
            keep one size: matrix products on a GPU go by whole tiles, and one more costs all of it.
    """

    def __init__(
        self,
        *,
        pool: PagePool,
        cache: RadixCache,
        slots: SlotPool,
        page_size: int,
        policy: Policy,
        chunked_prefill_size: int | None,
        max_prefill_tokens: int,
        stream_prefill_size: int | None = None,
        even_steps: bool = False,
        drafter: Drafter | None = None,
    ) -> None:
        self.pool = pool
        self.cache = cache
        self.slots = slots
        self.page_size = page_size
        self.policy = policy
        self.stats = SchedulerStats()
        self.compiling: list[Request] = []  # waiting for a grammar, arrival order
        self.waiting: list[Request] = []  # arrival order
        self.running: list[Request] = []  # arrival order
        self._in_chunks = chunked_prefill_size is not None
        self._budget = PrefillBudget(
            min(chunked_prefill_size or max_prefill_tokens, max_prefill_tokens),
            stream_prefill_size if self._in_chunks else None,
        )
        self._even_steps = even_steps and self._in_chunks
        self._drafter = drafter or Drafter((), 0, on_gpu=False)
        self._num_speculating = 0  # running requests that may have drafts
        self._num_bound = 0  # running requests that have a constraint
        self._num_collecting = 0  # running requests that want hidden states
        self._prefilling = PrefixIndex()
        self._num_arrived = 0
        self.num_updates = 0  # of the weights
        self.is_draining = False

    # ---- the outside -------------------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        """True while any request waits for a step or runs; of one that drains, while any has begun."""
        if self.is_draining:
            return bool(self.running) or any(request.num_preemptions for request in self.waiting)
        return bool(self.waiting or self.running)

    def add(self, request: Request) -> None:
        """Take a new request; it must fit alone in an empty pool (checked where requests enter)."""
        request.arrival = self._num_arrived
        self._rename(request)
        self._num_arrived += 1
        (self.compiling if request.status is RequestStatus.COMPILING else self.waiting).append(request)

    def make_ready(self, request: Request) -> None:
        """Let a request whose grammar is compiled wait for its turn, in the place it arrived at."""
        self.compiling.remove(request)
        request.status = RequestStatus.WAITING
        bisect.insort(self.waiting, request, key=_arrival)

    def preempt_all(self) -> None:
        """Take everything from all that run, while no step is under way: they will start over."""
        for request in reversed(self.running[:]):
            self._preempt(request)

    def renew_weights(self) -> None:
        """Other weights compute what comes: what earlier ones left in the cache is found by nobody any more.

        Requests that run keep what they have, and the name that it has in the cache.
        """
        self.num_updates += 1
        for request in (*self.waiting, *self.compiling):
            self._rename(request)

    def _rename(self, request: Request) -> None:
        """Have a request that owns nothing look for what the present weights computed."""
        if request.namespace.weights_version != self.num_updates:
            request.namespace = request.namespace._replace(weights_version=self.num_updates)
            request.prefix_hashes = None

    def abort(self, request: Request, message: str) -> None:
        """End ``request`` now; its pages are free for the next step. No-op on a finished one."""
        self.finish(request, FinishReason("abort", message=message))

    def finish(self, request: Request, reason: FinishReason) -> None:
        """End ``request`` with ``reason``, keep what it computed in the cache and free what it held."""
        if request.is_finished:
            return
        if request.status is RequestStatus.RUNNING:
            self.running.remove(request)
            self._release(request)
        elif request.status is RequestStatus.COMPILING:
            self.compiling.remove(request)
        else:
            self.waiting.remove(request)
        request.end(reason)
        self.stats.num_finished += 1

    # ---- one step ----------------------------------------------------------------------------------

    def schedule(self) -> Batch | None:
        """Decide the next step and account for it as if it had run. None when there is nothing to compute.

        The counters move here, not at ``commit``, so that the following step can be scheduled before this
        one's tokens are known. The result may be None although ``has_work`` (a lone request gave up its
        duplicate pages, or everybody waits for a commit): call again after the commit.
        """
        budget = self._budget.largest
        if self.waiting or self._prefilling:
            budget = self._budget.of_step(self.running, self.waiting)
        step = BatchBuilder(budget, even=self._even_steps)
        preempted = self._continue_running(step)
        if not preempted or not self.running:
            self._admit_waiting(step)
        if not (step.decodes or step.singles or step.prefills):
            return None
        batch = step.build(
            collects_states=self._num_collecting > 0,
            speculates=self._num_speculating > 0,
            is_bound=self._num_bound > 0,
        )
        # Pages computed by this step are findable from the next one on: steps run in order.
        for row in batch.other_rows:
            if row.start < row.request.num_prompt_tokens or row.num_tokens > 1 + len(row.drafts):
                self._publish(row.request)
        self.stats.num_steps += 1
        self.stats.num_computed_tokens += batch.num_tokens
        return batch

    @property
    def awaits_verdicts(self) -> bool:
        """Whether a step now would go without most requests, because it is open how many tokens they have."""
        drafting = self._num_speculating and sum(request.is_drafting for request in self.running)
        return 2 * drafting > len(self.running)

    def verify(self, batch: Batch, result: StepResult) -> Verdict:
        """Find out which drafts of a step were drawn; to be called before :meth:`commit`."""
        verdict = NO_VERDICT if self._drafter is None else self._drafter.verify(batch, result.token_ids)
        for request in verdict.surplus:
            if request.status is RequestStatus.RUNNING:
                kept = self.num_pages(request.num_computed_tokens)
                self.pool.release(request.pages[kept:])
                del request.pages[kept:]
        return verdict

    def commit(self, batch: Batch, result: StepResult, verdict: Verdict = NO_VERDICT) -> list[Request]:
        """Take in what a step produced. Returns the requests that got a token and ended by it or are watched.

        Requests whose newest token ends them by the token rules are finished on return.
        """
        _stamp_first_tokens(batch)
        requests, token_ids = verdict.kept(batch.sampling_requests), verdict.kept(result.token_ids)
        collect(batch, requests, result, verdict)
        noteworthy = []
        num_late = 0
        for request in take_all(requests, token_ids):
            if request.is_finished:  # ended while this step was in flight: nobody's token
                num_late += 1
            elif self._end_if_due(request) or request.is_watched:
                noteworthy.append(request)
        self.stats.num_generated_tokens += len(requests) - num_late
        if batch.speculates:
            self._look_ahead(requests)
        return list(dict.fromkeys(noteworthy)) if batch.has_drafts else noteworthy

    def _end_if_due(self, request: Request) -> bool:
        """End a request that its newest token ends. Returns whether it did."""
        token_id = request.token_ids[-1]
        if request.constraint is not None and not request.constraint.matcher.accept(token_id):
            self.abort(request, f"Token {token_id} is not one that its constraint allows here: a bug.")
            return True
        reason = request.check_finish()
        if reason is not None:
            self.finish(request, reason)
        return reason is not None

    def _look_ahead(self, requests: Iterable[Request]) -> None:
        """Note what is likely to come next, where nothing is being verified."""
        for request in dict.fromkeys(requests):
            state = request.speculation
            if state is not None and not (request.is_finished or state.drafts):
                self._drafter.look_ahead(request, state)
                if state.may_draft:
                    request.examine_again()

    # ---- running requests --------------------------------------------------------------------------

    def _continue_running(self, step: BatchBuilder) -> bool:
        """Give every running request its next tokens, oldest first. True when somebody was preempted."""
        preempted = False
        num_drafts = self._drafter.plan(self.running) if self._num_speculating else {}
        for request in decode_all(self.running, step.decodes):  # preemption may shorten it at the far end
            count = self._num_tokens_for(request, step)
            if (
                num_drafts
                and count == 1
                and request in num_drafts
                and self._add_drafts(request, num_drafts[request], step)
            ):
                continue
            if count:
                while not self._extend_pages(request, count, step):
                    self._preempt(self.running[-1])  # the youngest; at worst the request itself
                    preempted = True
                    if request.status is not RequestStatus.RUNNING:
                        return True  # it was the last in the list
                self._add_row(request, count, step)
        return preempted

    def _num_tokens_for(self, request: Request, step: BatchBuilder) -> int:
        """How many tokens the step computes for ``request``; 0 when the budget is used up."""
        if request.is_drafting:
            return 0  # how many tokens it has is known at the next commit
        remaining = request.num_remaining_tokens
        if remaining <= 1:
            # A decode. Nothing to do (0) only while its last possible token is still on the device.
            return remaining if request.num_tokens < request.max_num_tokens else 0
        if self._in_chunks:
            return min(remaining, max(step.prefill_budget, 0))
        fits = remaining <= step.prefill_budget or step.prefill_budget == self._budget.largest
        return remaining if fits else 0

    def _add_row(self, request: Request, count: int, step: BatchBuilder) -> None:
        start = request.num_computed_tokens
        samples = request.advance(count)
        if samples:
            if request.speculation is not None and request.speculation.may_draft:
                request.examine_again()
            else:
                request.decode_freely(len(request.pages) * self.page_size)
            if count == 1 and start >= request.num_prompt_tokens:
                step.decodes.append(request)
                return
        score = request.score_prompt(start + count)
        if count > 1 or start < request.num_prompt_tokens:
            step.num_prefill_tokens += count
        rows = step.singles if count == 1 else step.prefills
        rows.append(BatchRow(request, request.slot, start, count, samples, score))

    def _add_drafts(self, request: Request, count: int, step: BatchBuilder) -> bool:
        """Compute up to ``count`` drafts of a decoding request behind its newest token, if they fit."""
        state = request.speculation
        if state is None:
            return False
        spare = self._drafter.max_rows - len(self.running) - sum(len(row.drafts) for row in step.prefills)
        room = min(step.prefill_budget - 1, spare)
        drafts = self._drafter.drafts(request, state, min(count, room))
        start, count = request.num_computed_tokens, 1 + len(drafts)
        if not drafts or not self._extend_pages(request, count, step):
            return False
        state.drafts = drafts
        request.guess(len(drafts))
        step.num_prefill_tokens += count
        step.token_writes.append(TokenWrite(request.slot, start + 1, array("i", drafts)))
        step.prefills.append(BatchRow(request, request.slot, start, count, True, None, drafts))
        return True

    def _extend_pages(self, request: Request, count: int, step: BatchBuilder) -> bool:
        """Give ``request`` the pages its next ``count`` tokens need. False when there are not enough."""
        have = len(request.pages)
        need = -(-(request.num_computed_tokens + count) // self.page_size) - have
        if need <= 0:
            return True
        pages = self._allocate(need)
        if pages is None:
            return False
        request.pages += pages
        step.page_writes.append(PageWrite(request.slot, have, pages))
        return True

    def _allocate(self, count: int) -> list[int] | None:
        missing = count - self.pool.num_free
        if missing > 0:
            self.cache.evict(missing)
            if self.pool.num_free < count:
                return None
        return self.pool.allocate(count)

    def _preempt(self, request: Request) -> None:
        """Take everything from a running request; it waits again and will recompute what the cache lost."""
        self.running.remove(request)
        self._release(request)
        request.status = RequestStatus.WAITING
        request.start_over()
        self._rename(request)
        self.stats.num_preemptions += 1
        position = next(
            (i for i, other in enumerate(self.waiting) if other.arrival > request.arrival), len(self.waiting)
        )
        self.waiting.insert(position, request)

    def _release(self, request: Request) -> None:
        """Hand back slot and pages; whatever was computed of known tokens stays in the tree."""
        known = min(request.num_computed_tokens, len(request.token_ids))
        if known:
            pages = request.pages[: self.num_pages(known)]
            self.cache.insert(request.key_ids[:known], pages, request.namespace)
        if request.cache_node is not None:
            self.cache.unlock(request.cache_node)
            request.cache_node = None
        self.pool.release(request.pages)
        request.pages = []
        self.slots.release(request.slot)
        request.slot = PADDING_SLOT
        self._num_collecting -= request.return_hidden_states
        self._num_speculating -= request.speculation is not None
        self._num_bound -= request.constraint is not None
        self._prefilling.discard(request)

    def _publish(self, request: Request) -> None:
        """Put what is computed so far into the tree, a partly filled page included, and hold on to it.

        The request goes on writing behind the part of that page which the tree vouches for.
        """
        known = min(request.num_computed_tokens, len(request.token_ids))
        pages = request.pages[: self.num_pages(known)]
        place = self.cache.insert(request.key_ids[:known], pages, request.namespace)
        # Lock only pages that are ours. Where another request computed the same tokens first the tree keeps
        # its copy: locking that too would hold two pages for one.
        num_full = known // self.page_size
        if self.cache.enabled and num_full and self.pool.refcount(pages[num_full - 1]) > 1:
            self._move_lock(request, place)
        if request.num_computed_tokens >= request.num_prompt_tokens:
            self._prefilling.discard(request)

    def _move_lock(self, request: Request, node: Prefix) -> None:
        self.cache.lock(node)
        if request.cache_node is not None:
            self.cache.unlock(request.cache_node)
        request.cache_node = node

    # ---- waiting requests --------------------------------------------------------------------------

    def _admit_waiting(self, step: BatchBuilder) -> None:
        """Start waiting requests while budget, slots and pages last."""
        admitted: list[Request] = []
        if self.waiting and step.prefill_budget > 0 and self.slots.num_free:
            for request in consideration_order(self.waiting, self.policy, self.cache):
                if step.prefill_budget <= 0 or not self.slots.num_free:
                    break
                if request.num_pending_tokens:  # preempted with a step in flight: its token is unknown
                    continue
                if self.is_draining and not request.num_preemptions:
                    continue
                match = self.cache.match(request.key_ids, request.match_limit, request.namespace)
                if self.cache.enabled and self._prefilling.covers_more(request, match.num_tokens):
                    continue  # somebody is computing this very prefix: start from theirs
                if not self._admit(request, match, step):
                    break  # the next in order may be smaller, but passing would starve this one
                admitted.append(request)
        if admitted:
            count_passed_over(self.waiting, admitted)

    def _admit(self, request: Request, match: Match, step: BatchBuilder) -> bool:
        """Start ``request`` from its prefix hit. False, with nothing changed, when it does not fit now."""
        remaining = request.num_tokens - match.num_tokens
        count = min(remaining, step.prefill_budget) if self._in_chunks else remaining
        if count > step.prefill_budget and step.prefill_budget < self._budget.largest:
            return False  # whole prompts: only the first of a step may exceed the budget
        self.cache.lock(match.node)
        need = self.num_pages(match.num_tokens + count) - len(match.pages)
        # Room for the rest of its prompt, and a page for everybody who runs, or it is soon preempted again.
        wanted = self.num_pages(request.num_tokens) - len(match.pages) + len(self.running)
        roomy = wanted <= self.pool.num_free + self.cache.num_evictable or not self.running
        # Taken before allocating: eviction must not count pages of the match as free.
        self.pool.retain(match.pages)
        pages = self._allocate(need) if roomy else None
        if pages is None:
            self.pool.release(match.pages)
            self.cache.unlock(match.node)
            return False
        if match.partial_page is not None:  # the page is ours to continue, its beginning is theirs
            step.page_copies.append((match.partial_page, pages[0]))
        self._start(request, match, pages, step)
        self._add_row(request, count, step)
        return True

    def _start(self, request: Request, match: Match, pages: list[int], step: BatchBuilder) -> None:
        self.waiting.remove(request)
        bisect.insort(self.running, request, key=_arrival)
        request.status = RequestStatus.RUNNING
        request.cache_node = match.node
        request.pages = [*match.pages, *pages]
        request.resume(match.num_tokens)
        request.slot = self.slots.allocate()
        request.sampling_row = replace(request.sampling_row, slot=request.slot)
        step.page_writes.append(PageWrite(request.slot, 0, list(request.pages)))
        step.token_writes.append(TokenWrite(request.slot, 0, request.token_ids[:]))
        self._prefilling.add(request)
        self._num_collecting += request.return_hidden_states
        self._drafter.begin(request)
        self._num_speculating += request.speculation is not None
        self._num_bound += request.constraint is not None
        if not request.num_preemptions:
            request.stamps.scheduled = time.monotonic()
            self.stats.num_prompt_tokens_cached += match.num_tokens
            self.stats.num_prompt_tokens_computed += request.num_tokens - match.num_tokens

    def num_pages(self, num_tokens: int) -> int:
        """Pages that so many tokens take."""
        return -(-num_tokens // self.page_size)


def _stamp_first_tokens(batch: Batch) -> None:
    """Note when first tokens arrive; they come with the last piece of a prompt."""
    stamps = [row.request.stamps for row in batch.other_rows if row.samples]
    if stamps:  # never in steady decoding
        now = time.monotonic()
        for each in stamps:
            each.first_token = each.first_token or now
