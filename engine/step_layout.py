"""Where the tokens of a batch stand: the arrays that every device's inputs are made of."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .batch import Batch


@dataclass(frozen=True)
class StepLayout:
    """Rows and tokens of one step on the host; R rows, T tokens, S of the rows sample."""

    slots: np.ndarray  # [R] int32
    starts: np.ndarray  # [R] int32, position of each row's first token
    counts: np.ndarray  # [R] int32, tokens of each row
    samples: np.ndarray  # [R] bool
    num_decodes: int  # leading rows of one token

    @classmethod
    def of(cls, batch: Batch) -> StepLayout:
        """The layout of a batch, which has at least one row."""
        decodes, n = batch.decodes, len(batch.decodes.requests)
        slots, starts, counts = columns = np.ones((3, batch.num_rows), dtype=np.int32)
        samples = np.ones(batch.num_rows, dtype=bool)
        slots[:n], starts[:n] = decodes.slots, decodes.starts
        if batch.other_rows:
            _, *others, samples[n:], _ = zip(*batch.other_rows)
            columns[:, n:] = others
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
        return self.q_starts[1:][self.samples] - 1

    @property
    def all_sample(self) -> bool:
        """Whether a token is sampled after every one of the step's."""
        return len(self.last_tokens) == self.num_tokens

    @property
    def sample_slots(self) -> np.ndarray:
        """[S] int32."""
        return self.slots[self.samples]

    @property
    def sample_positions(self) -> np.ndarray:
        """[S] int32, position of each token about to be sampled."""
        return self.kv_lens[self.samples]
