"""What single stages of the sampler need to know of the rows that ask for them, as tensors.

Each is built from the records of a batch's rows, [B] of ``records.RECORD``, and from the rows themselves only
where they bring something of no fixed size. A stage that no row needs is None. Records are picked by
``compress``, which copies them whole; ``records[mask]`` goes field by field, at six times the cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .distributions import MASKED, OF_MODEL, cuts_of
from .rows import Rows, SamplingRow

NUCLEUS_HEAD = 1024
"""How many of the most probable tokens top-p and min-p look at before they look at the whole row."""


@dataclass(frozen=True)
class Biases:
    """Logit biases of all rows: ``flat`` [N] int64 = row * vocab_size + token; ``values`` [N] fp32."""

    flat: torch.Tensor
    values: torch.Tensor

    @classmethod
    def build(cls, rows: Sequence[SamplingRow], records: np.ndarray, vocab_size: int) -> Biases | None:
        """Those of the rows that have any."""
        entries = [
            (i * vocab_size + token, bias)
            for i in np.flatnonzero(records["biased"]).tolist()
            for token, bias in (rows[i].params.logit_bias or {}).items()
        ]
        if not entries:
            return None
        flat, values = zip(*entries)
        return cls(
            torch.tensor(flat, dtype=torch.int64, device="cpu"),
            torch.tensor(values, dtype=torch.float32, device="cpu"),
        )


@dataclass(frozen=True)
class Bans:
    """Stop tokens of rows with ``min_new_tokens``, all [N] int64.

    ``flat`` = row * vocab_size + token, banned while the row's position is below ``until``.
    """

    flat: torch.Tensor
    row: torch.Tensor
    until: torch.Tensor

    @classmethod
    def build(cls, rows: Sequence[SamplingRow], records: np.ndarray, vocab_size: int) -> Bans | None:
        """Those of the rows that have any."""
        index = np.flatnonzero(records["bans"]).tolist()
        if not index:
            return None
        entries = [
            (i * vocab_size + token, i, rows[i].prompt_len + rows[i].params.min_new_tokens)
            for i in index
            for token in dict.fromkeys(rows[i].banned_until_min)
        ]
        flat, row, until = torch.tensor(entries, dtype=torch.int64, device="cpu").unbind(1)
        return cls(flat.contiguous(), row.contiguous(), until.contiguous())


@dataclass(frozen=True)
class Penalties:
    """Rows that ask for any penalty. ``slots``, ``prompt_lens`` [R] int64, the rest [R, 1] fp32."""

    rows: Rows
    slots: torch.Tensor
    prompt_lens: torch.Tensor
    frequency: torch.Tensor
    presence: torch.Tensor
    repetition: torch.Tensor
    any_linear: bool
    any_repetition: bool

    @classmethod
    def build(cls, records: np.ndarray) -> Penalties | None:
        """Those of the rows that have any."""
        asking = records["linear"] | records["repeats"]
        if not asking.any():
            return None
        some = records.compress(asking)
        return cls(
            rows=Rows.where(asking),
            slots=tensor(some["slot"]),
            prompt_lens=tensor(some["prompt_len"]),
            frequency=column(some["frequency"]),
            presence=column(some["presence"]),
            repetition=column(some["repetition"]),
            any_linear=bool(some["linear"].any()),
            any_repetition=bool(some["repeats"].any()),
        )


@dataclass(frozen=True)
class Filters:
    """Sampled rows with top-k, top-p or min-p, all [R, 1]; a rule that a row lacks never cuts.

    Attributes:
        top_k: int64, the vocabulary size if off.
        top_p: fp64, infinity if off.
        min_p: fp64, 0 if off.
        cut: uint8, by which filters the row's log-probabilities go: ``NO_CUT``, ``TOP_P_CUT``, ``KEPT_CUT``.
        any_min_p: some row has min-p.
        wants_kept: some row wants to know which tokens are kept.
        head: how many of the most probable tokens to look at first.
    """

    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    cut: torch.Tensor
    any_min_p: bool
    wants_kept: bool
    head: int

    @classmethod
    def build(cls, records: np.ndarray, vocab_size: int) -> Filters | None:
        """The rules of rows that all have one (``are_filtered``); None of no rows."""
        if not len(records):
            return None
        top_k, top_p, min_p = records["top_k"], records["top_p"], records["min_p"]
        by_top_p, by_min_p = top_p < 1, min_p > 0
        top_k = np.where(top_k > 0, np.minimum(top_k, vocab_size), vocab_size)
        head = np.where(by_top_p | by_min_p, NUCLEUS_HEAD, top_k).max()
        cut, wants_kept = (records["logprobs"] & by_top_p).view(np.uint8), False  # true is TOP_P_CUT
        if records["asks"].any():
            cut, wants_kept = cuts_of(records), bool((records["asks"] & MASKED).any())
        return cls(
            top_k=column(top_k),
            # probabilities rounded to fp32 may sum to a little more than 1
            top_p=column(np.where(by_top_p, top_p, np.inf)),
            min_p=column(min_p),
            cut=column(cut),
            any_min_p=bool(by_min_p.any()),
            wants_kept=wants_kept,
            head=min(vocab_size, int(head)),
        )

    def take(self, index: torch.Tensor, head: int) -> Filters:
        """The rules of the rows ``index`` [N] int64, with another ``head``."""
        return Filters(
            top_k=self.top_k[index],
            top_p=self.top_p[index],
            min_p=self.min_p[index],
            cut=self.cut[index],
            any_min_p=self.any_min_p,
            wants_kept=self.wants_kept,
            head=head,
        )


@dataclass(frozen=True)
class ModelLogprobs:
    """Rows whose log-probabilities are of the model's own logits.

    Attributes:
        rows: those rows; ``top`` is the longest list of alternatives that one of them wants.
        temperature: [R, 1] fp32, what their logits are divided by.
        as_drawn: the temperature of each is the one that its token is drawn with.
    """

    rows: Rows
    top: int
    temperature: torch.Tensor
    as_drawn: bool

    @classmethod
    def build(cls, records: np.ndarray, vocab_size: int) -> ModelLogprobs | None:
        """Those of the rows that ask; None if none does."""
        asking = records["asks"] & OF_MODEL > 0
        if not asking.any():
            return None
        some = records.compress(asking)
        return cls(
            rows=Rows.where(asking),
            top=min(vocab_size, int(some["top_logprobs"].max())),
            temperature=column(some["model_temperature"]),
            as_drawn=bool((some["model_temperature"] == some["temperature"]).all()),
        )


@dataclass(frozen=True)
class KeptTokens:
    """Rows that want to know which tokens are kept, where some may not be.

    Attributes:
        rows: those rows, R of them.
        filtered: the ones among the R that filters apply to; ``places``: the same among the filtered rows.
    """

    rows: Rows
    filtered: Rows
    places: Rows

    @classmethod
    def build(cls, records: np.ndarray, filtered: np.ndarray) -> KeptTokens | None:
        """Those of the rows that ask; None if none does. ``filtered`` [B] bool: filters apply to the row."""
        asking = records["asks"] & MASKED > 0
        if not asking.any():
            return None
        return cls(Rows.where(asking), Rows.where(filtered[asking]), Rows.where(asking[filtered]))


def are_filtered(records: np.ndarray, vocab_size: int) -> np.ndarray:
    """Which rows have top-k, top-p or min-p, [B] bool, if they are drawn at all."""
    top_k = records["top_k"]
    return ((top_k > 0) & (top_k < vocab_size)) | (records["top_p"] < 1) | (records["min_p"] > 0)


def tensor(values: np.ndarray) -> torch.Tensor:
    """A copy of ``values`` [R], which may be a field of records, as a tensor on the CPU."""
    return torch.from_numpy(values.copy())


def column(values: np.ndarray) -> torch.Tensor:
    """The same as [R, 1]."""
    return tensor(values).unsqueeze(1)
