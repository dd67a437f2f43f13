"""What one step computes: a frozen list of rows and the table updates they need.

A batch is built by the scheduler, read by the runner and thrown away. Rows need not be of one kind:
a row with many tokens is a piece of a prefill, a row with one token a decode; the runner does not care.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .request import Request


class BatchRow(NamedTuple):
    """Tokens ``start : start + num_tokens`` of one request.

    ``samples`` says whether the row reaches the request's last token, so that a next token is drawn.
    ``score`` is the range of prompt positions whose next-token log-probabilities are wanted, or None.
    """

    request: Request
    slot: int
    start: int
    num_tokens: int
    samples: bool
    score: tuple[int, int] | None

    @property
    def end(self) -> int:
        """One past the last position of the row: the context length after the step."""
        return self.start + self.num_tokens


class PageWrite(NamedTuple):
    """Pages that enter a slot's page table at entries ``start : start + len(pages)``."""

    slot: int
    start: int
    pages: list[int]


class TokenWrite(NamedTuple):
    """Token ids that enter a slot's token table at positions ``0 : len(ids)``."""

    slot: int
    ids: array  # array('i')


@dataclass(frozen=True)
class Batch:
    """One step's work. ``page_copies`` (source, destination) happen before anything is computed."""

    rows: tuple[BatchRow, ...]
    page_copies: tuple[tuple[int, int], ...] = ()
    page_writes: tuple[PageWrite, ...] = ()
    token_writes: tuple[TokenWrite, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens computed by the step."""
        return sum(row.num_tokens for row in self.rows)

    @property
    def sampling_rows(self) -> list[BatchRow]:
        """The rows that draw a token, in batch order: the order of every per-token result."""
        return [row for row in self.rows if row.samples]


@dataclass(frozen=True)
class StepResult:
    """What a step produced, on the host.

    ``token_ids``: one per sampling row. ``logprobs``: per sampling row, or None where not asked.
    ``prompt_scores``: request -> scored prompt tokens, for rows with ``score``.
    """

    token_ids: list[int]
    logprobs: list[object | None] | None = None  # TokenLogprob per sampling row
    prompt_scores: dict[int, list[object]] | None = None  # row index -> TokenLogprobs
