"""What one step computes: a frozen list of rows and the table updates they need.

A batch is built by the scheduler, read by the runner and thrown away. Rows need not be of one kind: a row
with many tokens is a piece of a prefill, a row with one token a decode (or the last token of a prompt).
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import repeat
from typing import TYPE_CHECKING, NamedTuple

from .row_loops import gather_ints

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from .logprobs import PackedLogprob, TokenLogprob
    from .request import Request
    from .sampling_masks import PackedMask


class BatchRow(NamedTuple):
    """Tokens ``start : start + num_tokens`` of one request.

    ``samples`` says whether the row reaches the request's last token, so that a next token is drawn.
    ``drafts``: its last tokens are these guesses, and a token is drawn in place of each as well.
    ``score`` is the range of prompt positions whose next-token log-probabilities are wanted, or None.
    """

    request: Request
    slot: int
    start: int
    num_tokens: int
    samples: bool
    score: tuple[int, int] | None
    drafts: Sequence[int] = ()

    @property
    def num_samples(self) -> int:
        """Tokens drawn."""
        return self.samples + len(self.drafts)

    @property
    def end(self) -> int:
        """One past the last position of the row: the context length after the step."""
        return self.start + self.num_tokens


# BatchRow._make without the Python call: a step may have a thousand rows.
_row_of = partial(tuple.__new__, BatchRow)


class Decodes(NamedTuple):
    """Plain decodes, as columns: one committed or pending output token each, followed by a sampled one."""

    requests: list[Request]
    slots: array  # array('i')
    starts: array  # array('i'), position of the token

    @classmethod
    def of(cls, requests: list[Request]) -> Decodes:
        """The decodes of requests whose counters say that this step has run."""
        slots = gather_ints("slot", requests, 0)
        starts = gather_ints("num_computed_tokens", requests, -1)
        return cls(requests, slots, starts)


class PageWrite(NamedTuple):
    """Pages that enter a slot's page table at entries ``start : start + len(pages)``."""

    slot: int
    start: int
    pages: list[int]


class TokenWrite(NamedTuple):
    """Token ids that enter a slot's token table at positions ``start : start + len(ids)``."""

    slot: int
    start: int
    ids: array  # array('i')


_NO_DECODES = Decodes([], array("i"), array("i"))


@dataclass(frozen=True)
class Batch:
    """One step's work.

    The plain decodes come first and are kept as columns, because steady decoding is nothing else and
    building a row for each costs more than scheduling it; ``other_rows`` follow. The first ``num_decodes``
    rows of all have one token each, the others several: kernels for one query per row and for many each
    see one range of tokens. ``page_copies`` (source, destination) happen before anything is computed.
    ``collects_states``: requests that want hidden states are running, perhaps in this batch; ``speculates``
    and ``is_bound`` say the same of those that may have drafts and of those that have a constraint.
    """

    other_rows: tuple[BatchRow, ...]
    num_decodes: int
    page_copies: tuple[tuple[int, int], ...] = ()
    page_writes: tuple[PageWrite, ...] = ()
    token_writes: tuple[TokenWrite, ...] = ()
    decodes: Decodes = _NO_DECODES
    collects_states: bool = False
    speculates: bool = False
    is_bound: bool = False

    @property
    def num_rows(self) -> int:
        """Rows of any kind."""
        return len(self.decodes.requests) + len(self.other_rows)

    @property
    def num_tokens(self) -> int:
        """Tokens computed by the step."""
        return len(self.decodes.requests) + sum(row.num_tokens for row in self.other_rows)

    @cached_property
    def rows(self) -> tuple[BatchRow, ...]:
        """All rows in batch order, built at the first use."""
        columns = zip(*self.decodes, repeat(1), repeat(True), repeat(None), repeat(()))
        return (*map(_row_of, columns), *self.other_rows)

    @cached_property
    def sampling_requests(self) -> list[Request]:
        """Whose tokens are drawn, in batch order: the order of every per-token result. Read only.

        A request with drafts stands there once for each of its tokens.
        """
        if not self.other_rows:
            return self.decodes.requests
        if self.has_drafts:
            others = [row.request for row in self.other_rows for _ in range(row.num_samples)]
        else:
            others = [row.request for row in self.other_rows if row.samples]
        return self.decodes.requests + others

    @cached_property
    def has_drafts(self) -> bool:
        """Whether some row has drafts."""
        return any(row.drafts for row in self.other_rows)


@dataclass(frozen=True)
class StepResult:
    """What a step produced, on the host.

    Results are named by places in the batch: per sampling request means in the order of
    ``Batch.sampling_requests``, a row is an index into ``Batch.rows``.

    Attributes:
        token_ids: one per sampling request.
        logprobs: per sampling request, None where not asked; None if nobody asked.
        prompt_scores: row -> scored prompt tokens, of rows with ``score``.
        hidden_states: (row, tensor [n, H]) of rows that collect them.
        embeddings: per sampling request, in an engine that embeds; its tokens mean nothing.
        sampling_masks: per sampling request that is masked, None for the others; None if none is.
        failures: index of a sampling request -> the error that ends its request; its token means nothing.
    """

    token_ids: list[int]
    logprobs: list[PackedLogprob | None] | None = None
    prompt_scores: Mapping[int, list[TokenLogprob]] = field(default_factory=dict)
    hidden_states: Sequence[tuple[int, torch.Tensor]] = ()
    embeddings: list[list[float]] | None = None
    failures: Mapping[int, Exception] = field(default_factory=dict)
    sampling_masks: list[PackedMask | None] | None = None
