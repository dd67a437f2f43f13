"""A runner without a model: it simulates the KV memory and derives each token from what it reads there.

Every written position stores the token and its position under (page, offset). The next token of a row is a
hash of the context as read back through the row's page table, so a wrong page, a missing copy, a page
overwritten too early or a stale token changes the output, and so a comparison with ``expected_output``
checks the whole of scheduling and paging.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence

from rootlet.cache.page_pool import PagePool
from rootlet.cache.radix_cache import RadixCache
from rootlet.cache.slot_pool import SlotPool
from rootlet.engine.core import EngineCore
from rootlet.engine.replies.growing import GrowingOutput
from rootlet.engine.replies.outputs import RequestOutput
from rootlet.engine.requests.factory import Submission
from rootlet.engine.schedule.batch import Batch, StepResult
from rootlet.engine.schedule.drafts.drafter import MAX_DRAFTS, Drafter
from rootlet.engine.schedule.drafts.proposer import Proposer
from rootlet.engine.schedule.invariants import check_invariants
from rootlet.engine.schedule.logprobs import TokenLogprob
from rootlet.engine.schedule.policies import make_policy
from rootlet.engine.schedule.request import LogprobOptions, Request
from rootlet.engine.schedule.scheduler import Scheduler
from rootlet.sampling.params import SamplingParams
from rootlet.sampling.rows import SamplingRow

VOCAB = 97


def next_token(context: list[int]) -> int:
    """The fake model: a hash of the whole context."""
    digest = hashlib.blake2b(array("i", context).tobytes(), digest_size=4).digest()
    return int.from_bytes(digest, "little") % VOCAB


def expected_output(
    prompt: list[int], max_new_tokens: int, stop_ids: frozenset[int] = frozenset()
) -> list[int]:
    """What any correct scheduling must produce."""
    context = list(prompt)
    while len(context) < len(prompt) + max_new_tokens:
        context.append(next_token(context))
        if context[-1] in stop_ids:
            break
    return context[len(prompt) :]


class FakeRunner:
    """Simulates tables and KV pages. Work happens at launch, as if on an in-order device."""

    def __init__(self, page_size: int) -> None:
        self.page_size = page_size
        self.kv: dict[tuple[int, int], tuple[int, int]] = {}  # (page, offset) -> (token, position)
        self.tokens: dict[int, dict[int, int]] = {}
        self.pages: dict[int, dict[int, int]] = {}
        self.num_computed = 0
        self.batches: list[Batch] = []
        self.fail_at_step: int | None = None

    def launch(self, batch: Batch) -> FakeStep:
        if self.fail_at_step == len(self.batches):
            raise ArithmeticError("the device is on fire")
        self.batches.append(batch)
        for write in batch.token_writes:
            row = self.tokens[write.slot] = {} if write.start == 0 else self.tokens[write.slot]
            row.update(enumerate(write.ids, write.start))
        for write in batch.page_writes:
            table = self.pages.setdefault(write.slot, {})
            table.update({write.start + i: page for i, page in enumerate(write.pages)})
        read = [self._page(src) for src, _ in batch.page_copies]
        for (_, dst), content in zip(batch.page_copies, read):
            self.kv.update({(dst, offset): value for offset, value in content.items()})
        for row in batch.rows:
            for position in range(row.start, row.end):
                self.kv[self._place(row.slot, position)] = (self.tokens[row.slot][position], position)
        self.num_computed += batch.num_tokens
        scores, sampled = {}, []
        for index, row in enumerate(batch.rows):
            if row.score is not None:
                targets = [self.tokens[row.slot][p + 1] for p in range(*row.score)]
                scores[index] = [TokenLogprob(-float(p), t) for p, t in zip(range(*row.score), targets)]
            for end in range(row.end + 1 - row.num_samples, row.end + 1):  # behind each draft as well
                sampled.append(next_token(self._context(row.slot, end)))
                self.tokens[row.slot][end] = sampled[-1]
        return FakeStep(StepResult(sampled, None, scores))

    def _place(self, slot: int, position: int) -> tuple[int, int]:
        return self.pages[slot][position // self.page_size], position % self.page_size

    def _page(self, page: int) -> dict[int, tuple[int, int]]:
        return {o: self.kv[page, o] for o in range(self.page_size) if (page, o) in self.kv}

    def _context(self, slot: int, length: int) -> list[int]:
        entries = [self.kv[self._place(slot, position)] for position in range(length)]
        assert [position for _, position in entries] == list(range(length)), "read KV of another position"
        return [token for token, _ in entries]


class FakeStep:
    """A launched step of the fake runner."""

    def __init__(self, result: StepResult) -> None:
        self._result = result

    def draw(self) -> None:
        """Nothing is left to draw: there are no grammars here."""

    def wait(self) -> StepResult:
        return self._result


class Recorder:
    """A listener that keeps what it hears."""

    def __init__(self) -> None:
        self.outputs: list[RequestOutput] = []
        self.errors: list[BaseException] = []
        self.growing: GrowingOutput | None = None

    def grow(self, growing: GrowingOutput) -> None:
        self.growing = growing

    def look(self) -> None:
        """Read as a stream does, after a step."""
        output = None if self.growing is None or self.ends else self.growing.look()
        if output is not None:
            self.outputs.append(output)

    def deliver(self, output: RequestOutput) -> None:
        self.outputs.append(output)

    def fail(self, error: BaseException) -> None:
        self.errors.append(error)

    @property
    def ends(self) -> int:
        """Terminal events heard; must become exactly one."""
        return len(self.errors) + sum(output.finish_reason is not None for output in self.outputs)


def make_core(
    *,
    num_pages: int = 64,
    page_size: int = 4,
    max_running: int = 8,
    chunk: int | None = 16,
    max_prefill_tokens: int = 64,
    policy: str = "lpm",
    cache: bool = True,
    overlap: bool = False,
    even_steps: bool = False,
    stream_prefill_size: int | None = None,
    proposers: Sequence[Proposer] = (),
) -> tuple[EngineCore, FakeRunner]:
    """A core around a fake runner."""
    pool = PagePool(num_pages)
    scheduler = Scheduler(
        pool=pool,
        cache=RadixCache(pool, page_size, enabled=cache),
        slots=SlotPool(max_running + 1),
        page_size=page_size,
        policy=make_policy(policy),
        chunked_prefill_size=chunk,
        max_prefill_tokens=max_prefill_tokens,
        even_steps=even_steps,
        stream_prefill_size=stream_prefill_size,
        drafter=Drafter(proposers, max_running + MAX_DRAFTS, on_gpu=False) if proposers else None,
    )
    runner = FakeRunner(page_size)
    return EngineCore(scheduler, runner, overlap=overlap), runner


def make_submission(
    rid: str,
    prompt: list[int],
    max_new_tokens: int = 8,
    *,
    stop_ids: frozenset[int] = frozenset(),
    prompt_start: int | None = None,
    stream: bool = False,
) -> Submission:
    """A request the way the factory would build it, without a tokenizer."""
    params = SamplingParams(max_new_tokens=max_new_tokens, temperature=0)
    request = Request(
        rid=rid,
        token_ids=array("i", prompt),
        params=params,
        max_new_tokens=max_new_tokens,
        stop_token_ids=stop_ids,
        sampling_row=SamplingRow(params, 0, 0, len(prompt)),
        logprobs=None if prompt_start is None else LogprobOptions(prompt_start, 0),
    )
    return Submission(request, None, stream, False)


def run_to_end(core: EngineCore, max_steps: int = 10_000, readers: Sequence[Recorder] = ()) -> int:
    """Step until nothing is left; returns the number of steps. Fails if the engine does not get anywhere."""
    for step in range(max_steps):
        if not core.has_work:
            return step
        core.step()
        for reader in readers:
            reader.look()
        check_invariants(core.scheduler)
    raise AssertionError(f"still busy after {max_steps} steps")
