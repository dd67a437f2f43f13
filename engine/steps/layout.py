"""Where the tokens of a batch stand: the arrays that every device's inputs are made of."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..schedule.batch import Batch


@dataclass(frozen=True)
class StepLayout:
    """Rows and tokens of one step on the host; R rows, T tokens, after S of which one is drawn."""

    slots: np.ndarray  # [R] int32
    starts: np.ndarray  # [R] int32, position of each row's first token
    counts: np.ndarray  # [R] int32, tokens of each row
    samples: np.ndarray  # [R] int32, after how many of its last tokens one is drawn
    num_decodes: int  # leading rows of one token

    @classmethod
    def of(cls, batch: Batch) -> StepLayout:
        """The layout of a batch, which has at least one row."""
        decodes, n = batch.decodes, len(batch.decodes.requests)
        slots, starts, counts = columns = np.ones((3, batch.num_rows), dtype=np.int32)
        samples = np.ones(batch.num_rows, dtype=np.int32)
        slots[:n], starts[:n] = decodes.slots, decodes.starts
        if batch.other_rows:
            _, *others, draws, _, drafts = zip(*batch.other_rows)
            columns[:, n:] = others
            samples[n:] = np.add(draws, drafts)
        return cls(slots, starts, counts, samples, batch.num_decodes)

    @property
    def num_rows(self) -> int:
        """R."""
        return len(self.slots)

    @property
    def num_tokens(self) -> int:
        """T."""
        return int(self.q_starts[-1])

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
        shifts = np.repeat(self.starts - self.q_starts[:-1], self.counts)
        return np.arange(self.num_tokens, dtype=np.int32) + shifts

    @cached_property
    def token_slots(self) -> np.ndarray:
        """[T] int32, slot of each token's row."""
        return np.repeat(self.slots, self.counts)

    @cached_property
    def last_tokens(self) -> np.ndarray:
        """[S] int32, the tokens after which one is sampled."""
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
        return len(self.last_tokens) == self.num_tokens

    @property
    def sample_slots(self) -> np.ndarray:
        """[S] int32."""
        return self.slots[self.sample_rows]

    @property
    def sample_positions(self) -> np.ndarray:
        """[S] int32, position of each token about to be sampled."""
        return self.positions[self.last_tokens] + 1
