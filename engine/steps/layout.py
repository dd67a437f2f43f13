"""One step as plain data: all that a device needs, and nothing that only the scheduler understands.

Below a layout nobody sees a request. What comes back is named by the places given here: the index of a row,
or of a drawn token.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ...cache.slot_pool import PADDING_SLOT

if TYPE_CHECKING:
    import torch

    from ...cache.slot_tables import Run
    from ...sampling.rows import SamplingRow
    from ..schedule.constraint import RequestConstraint

OWN_COLUMNS = ("slot", "position", "length")
"""Names of the columns of every step: the slot of a token's row, its index in the sequence, and one more than
that, which only recorded steps need as a column (how far the token sees, and where the next one goes)."""


class ScoreRange(NamedTuple):
    """Prompt positions ``first : last`` of a row whose successors are scored, with ``top`` alternatives.

    ``token``: index among the step's T of the token at ``first``; ``slot`` is the row's.
    """

    row: int
    slot: int
    first: int
    last: int
    token: int
    top: int


class Piece(NamedTuple):
    """Tokens ``begin : end`` of the step's T, of one row, whose hidden states are wanted."""

    row: int
    begin: int
    end: int


class Insert(NamedTuple):
    """Vectors ``values`` [n, H] fp32 on the CPU that stand for tokens, from the step's token ``begin`` on."""

    begin: int
    values: torch.Tensor


class BoundSamples(NamedTuple):
    """Drawn tokens that one constraint binds: from the ``first`` of the step's S on, one more than drafts."""

    first: int
    constraint: RequestConstraint
    drafts: Sequence[int] = ()


@dataclass(frozen=True)
class StepLayout:
    """R rows and T tokens of one step, after S of which a token is drawn.

    Attributes:
        slots, starts, counts: [R] int32, each row's slot, position of its first token, and number of tokens.
        samples: [R] int32, after how many of a row's last tokens one is drawn.
        num_decodes: leading rows of one token.
        only_decodes: each row is one token of an output: no prompts, no drafts.
        sampling_rows: [S], how each token is drawn; none in padding.
        page_tables: [R], the pages of each row's sequence so far. The lists are the scheduler's own, which
            keeps one for as long as a sequence runs: to be read at launch, not to be changed.
        more_columns: by name [T] int32, what features look up per token beside ``columns`` of our own.
        token_writes, page_writes: changes of the slot tables, before anything is computed.
        page_copies: (source, destination), before anything is computed.
        scores, pieces, inserts, bound: what some rows want or bring besides, in the order of rows.
    """

    slots: np.ndarray
    starts: np.ndarray
    counts: np.ndarray
    samples: np.ndarray
    num_decodes: int
    only_decodes: bool
    sampling_rows: Sequence[SamplingRow]
    page_tables: Sequence[Sequence[int]]
    more_columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    token_writes: Iterable[Run] = ()
    page_writes: Iterable[Run] = ()
    page_copies: Sequence[tuple[int, int]] = ()
    scores: Sequence[ScoreRange] = ()
    pieces: Sequence[Piece] = ()
    inserts: Sequence[Insert] = ()
    bound: Sequence[BoundSamples] = ()

    @classmethod
    def padding(cls, num_rows: int, num_tokens: int, more_columns: Iterable[str] = ()) -> StepLayout:
        """Rows of ``num_tokens`` each on the padding slot, at least one.

        Their tokens are 0, so are their columns, and their keys and values all go to the padding page.
        """
        slots = np.full(num_rows, PADDING_SLOT, dtype=np.int32)
        counts = np.full(num_rows, num_tokens, dtype=np.int32)
        zeros = np.zeros(num_rows * num_tokens, dtype=np.int32)
        return cls(
            slots=slots,
            starts=np.zeros_like(slots),
            counts=counts,
            samples=np.ones_like(slots),
            num_decodes=num_rows if num_tokens == 1 else 0,
            only_decodes=num_tokens == 1,
            sampling_rows=(),
            page_tables=((),) * num_rows,
            more_columns=dict.fromkeys(more_columns, zeros),
        )

    @property
    def num_rows(self) -> int:
        """R."""
        return len(self.slots)

    @property
    def num_tokens(self) -> int:
        """T."""
        return len(self.slots) if self.only_decodes else int(self.q_starts[-1])

    @property
    def num_samples(self) -> int:
        """S."""
        return len(self.last_tokens)

    @cached_property
    def kv_lens(self) -> np.ndarray:
        """[R] int32, context of each row after the step."""
        return self.starts + self.counts

    @cached_property
    def q_starts(self) -> np.ndarray:
        """[R + 1] int32, row r owns the tokens ``q_starts[r] : q_starts[r + 1]``."""
        q_starts = np.zeros(len(self.slots) + 1, dtype=np.int32)
        np.cumsum(self.counts, out=q_starts[1:])
        return q_starts

    @cached_property
    def positions(self) -> np.ndarray:
        """[T] int32, index of each token in its sequence."""
        if self.only_decodes:
            return self.starts
        shifts = np.repeat(self.starts - self.q_starts[:-1], self.counts)
        return np.arange(self.num_tokens, dtype=np.int32) + shifts

    @cached_property
    def token_slots(self) -> np.ndarray:
        """[T] int32, slot of each token's row."""
        return self.slots if self.only_decodes else np.repeat(self.slots, self.counts)

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """What every token has, by name [T] int32: "slot", "position" and those of features."""
        return {"slot": self.token_slots, "position": self.positions, **self.more_columns}

    @property
    def token_tables(self) -> Sequence[Sequence[int]]:
        """[T], ``page_tables`` of each token's row."""
        if len(self.page_tables) == self.num_tokens:
            return self.page_tables
        return [table for table, count in zip(self.page_tables, self.counts.tolist()) for _ in range(count)]

    @cached_property
    def last_tokens(self) -> np.ndarray:
        """[S] int32, the tokens after which one is sampled."""
        if self.only_decodes:
            return np.arange(self.num_rows, dtype=np.int32)
        ends = self.q_starts[1:][self.sample_rows]
        lasts = np.cumsum(self.samples)[self.sample_rows]  # one past the row's last of the S
        return ends - (lasts - np.arange(len(ends))).astype(np.int32)

    @cached_property
    def sample_rows(self) -> np.ndarray:
        """[S], the row that each token is drawn in."""
        return np.repeat(np.arange(self.num_rows), self.samples)

    @property
    def all_sample(self) -> bool:
        """Whether a token is sampled after every one of the step's."""
        return self.num_samples == self.num_tokens

    @property
    def sample_slots(self) -> np.ndarray:
        """[S] int32."""
        return self.slots[self.sample_rows]

    @property
    def sample_positions(self) -> np.ndarray:
        """[S] int32, position of each token about to be sampled."""
        return self.positions[self.last_tokens] + 1
