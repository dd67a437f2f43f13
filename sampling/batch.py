"""``SamplingBatch``: the parameters of a batch's rows as tensors, and which stages anybody needs.

Built on the host from the rows; reusable for as many steps as the rows stay the same. What changes from
step to step (logits, positions, the token table) is passed to ``Sampler.sample``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .params import SamplingParams
from .seeds import stream_key

NUCLEUS_HEAD = 1024
"""How many of the most probable tokens top-p and min-p look at before they look at the whole row."""

_MAX_TEMPERATURE = 1e30  # beyond it a banned token's -inf would be divided by fp32 infinity, giving NaN


@dataclass(frozen=True)
class SamplingRow:
    """One row of logits and whose it is.

    Attributes:
        params: the request's parameters.
        seed: its seed in [0, 2**63 - 1] (drawn by the engine if the user gave none).
        slot: row of the token table that holds its tokens.
        prompt_len: how many of those tokens are the prompt.
        banned_until_min: token ids that end the request; impossible while fewer than
            ``params.min_new_tokens`` tokens were generated.
        logprobs: report the log-probability of the sampled token.
        top_logprobs: report this many of the most probable tokens too; only read if ``logprobs``.
    """

    params: SamplingParams
    seed: int
    slot: int
    prompt_len: int
    banned_until_min: tuple[int, ...] = ()
    logprobs: bool = False
    top_logprobs: int = 0


@dataclass(frozen=True)
class Rows:
    """A subset of a tensor's rows: ``index`` [count] int64, or None for all of them (then no copies)."""

    index: torch.Tensor | None
    count: int

    @classmethod
    def build(cls, index: Sequence[int], total: int, device: torch.device) -> Rows:
        """The rows ``index`` (ascending) of a tensor of ``total`` rows."""
        whole = len(index) == total
        return cls(None if whole else torch.tensor(index, dtype=torch.int64, device=device), len(index))

    def take(self, values: torch.Tensor) -> torch.Tensor:
        """The rows of ``values`` [total, ...] -> [count, ...]; ``values`` itself if all."""
        return values if self.index is None else values.index_select(0, self.index)

    def put(self, target: torch.Tensor, values: torch.Tensor) -> None:
        """Write ``values`` [count, ...] into these rows of ``target`` [total, ...]."""
        if self.index is None:
            target.copy_(values)
        else:
            target.index_copy_(0, self.index, values)


@dataclass(frozen=True)
class Biases:
    """Logit biases of all rows: ``flat`` [N] int64 = row * vocab_size + token; ``values`` [N] fp32."""

    flat: torch.Tensor
    values: torch.Tensor


@dataclass(frozen=True)
class Bans:
    """Stop tokens of rows with ``min_new_tokens``, all [N] int64.

    ``flat`` = row * vocab_size + token, banned while the row's position is below ``until``.
    """

    flat: torch.Tensor
    row: torch.Tensor
    until: torch.Tensor


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


@dataclass(frozen=True)
class Filters:
    """Sampled rows with top-k, top-p or min-p, all [R, 1]; a rule that a row lacks never cuts.

    Attributes:
        top_k: int64, the vocabulary size if off.
        top_p: fp64, infinity if off.
        min_p: fp64, 0 if off.
        top_p_logprobs: bool, the row's log-probabilities need the mass that top-p alone keeps.
        any_min_p: some row has min-p.
        head: how many of the most probable tokens to look at first.
    """

    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    top_p_logprobs: torch.Tensor
    any_min_p: bool
    head: int

    def take(self, index: torch.Tensor, head: int) -> Filters:
        """The rules of the rows ``index`` [N] int64, with another ``head``."""
        return Filters(
            top_k=self.top_k[index],
            top_p=self.top_p[index],
            min_p=self.min_p[index],
            top_p_logprobs=self.top_p_logprobs[index],
            any_min_p=self.any_min_p,
            head=head,
        )


@dataclass(frozen=True)
class SamplingBatch:
    """Everything the sampler needs to know of B rows; a stage nobody needs is None (or has no rows).

    Attributes:
        keys: [B] int64, start of each row's random stream.
        temperature: [B, 1] fp32; 1 for greedy rows.
        greedy, sampled: a partition of the B rows.
        plain, filtered: a partition of the *sampled* rows (indices into them) by whether ``filters`` applies;
            ``filtered_in_batch`` are the filtered ones as indices into all B.
        logprobs: rows whose log-probabilities are wanted; ``top_logprobs`` is the largest wanted list.
    """

    size: int
    vocab_size: int
    keys: torch.Tensor
    temperature: torch.Tensor
    biases: Biases | None
    bans: Bans | None
    penalties: Penalties | None
    greedy: Rows
    sampled: Rows
    plain: Rows
    filtered: Rows
    filtered_in_batch: Rows
    filters: Filters | None
    logprobs: Rows
    top_logprobs: int

    @classmethod
    def build(cls, rows: Sequence[SamplingRow], vocab_size: int, device: torch.device | str) -> SamplingBatch:
        """Lay out ``rows`` (row i of the logits belongs to ``rows[i]``) for a vocabulary of ``vocab_size``.

        Token ids in the parameters must be below ``vocab_size`` (``SamplingParams.check_vocab``).
        """
        device = torch.device(device)
        size = len(rows)
        greedy = [i for i, row in enumerate(rows) if row.params.is_greedy]
        sampled = [i for i, row in enumerate(rows) if not row.params.is_greedy]
        drawn = [rows[i] for i in sampled]
        filtered = [i for i, row in enumerate(drawn) if _has_filter(row.params, vocab_size)]
        plain = [i for i, row in enumerate(drawn) if not _has_filter(row.params, vocab_size)]
        asking = [i for i, row in enumerate(rows) if row.logprobs]
        temperature = [
            1.0 if row.params.is_greedy else min(row.params.temperature, _MAX_TEMPERATURE) for row in rows
        ]
        return cls(
            size=size,
            vocab_size=vocab_size,
            keys=torch.tensor([stream_key(row.seed) for row in rows], dtype=torch.int64, device=device),
            temperature=_column(temperature, torch.float32, device),
            biases=_biases(rows, vocab_size, device),
            bans=_bans(rows, vocab_size, device),
            penalties=_penalties(rows, device),
            greedy=Rows.build(greedy, size, device),
            sampled=Rows.build(sampled, size, device),
            plain=Rows.build(plain, len(drawn), device),
            filtered=Rows.build(filtered, len(drawn), device),
            filtered_in_batch=Rows.build([sampled[i] for i in filtered], size, device),
            filters=_filters([drawn[i] for i in filtered], vocab_size, device) if filtered else None,
            logprobs=Rows.build(asking, size, device),
            top_logprobs=min(vocab_size, max((rows[i].top_logprobs for i in asking), default=0)),
        )

    @property
    def changes_logits(self) -> bool:
        """True if some row's logits are edited before the choice (grammar masks aside)."""
        return not (self.biases is None and self.bans is None and self.penalties is None)


def _column(values: list, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype, device=device).unsqueeze(1)


def _has_filter(params: SamplingParams, vocab_size: int) -> bool:
    return 1 <= params.top_k < vocab_size or params.top_p < 1 or params.min_p > 0


def _biases(rows: Sequence[SamplingRow], vocab_size: int, device: torch.device) -> Biases | None:
    entries = [
        (i * vocab_size + token, bias)
        for i, row in enumerate(rows)
        for token, bias in (row.params.logit_bias or {}).items()
    ]
    if not entries:
        return None
    flat, values = zip(*entries)
    return Biases(
        torch.tensor(flat, dtype=torch.int64, device=device),
        torch.tensor(values, dtype=torch.float32, device=device),
    )


def _bans(rows: Sequence[SamplingRow], vocab_size: int, device: torch.device) -> Bans | None:
    entries = [
        (i * vocab_size + token, i, row.prompt_len + row.params.min_new_tokens)
        for i, row in enumerate(rows)
        if row.params.min_new_tokens > 0
        for token in dict.fromkeys(row.banned_until_min)
    ]
    if not entries:
        return None
    flat, row, until = torch.tensor(entries, dtype=torch.int64, device=device).unbind(1)
    return Bans(flat.contiguous(), row.contiguous(), until.contiguous())


def _penalties(rows: Sequence[SamplingRow], device: torch.device) -> Penalties | None:
    def linear(p: SamplingParams) -> bool:
        return p.frequency_penalty != 0 or p.presence_penalty != 0

    index = [i for i, r in enumerate(rows) if linear(r.params) or r.params.repetition_penalty != 1]
    if not index:
        return None
    asking = [rows[i] for i in index]
    return Penalties(
        rows=Rows.build(index, len(rows), device),
        slots=torch.tensor([r.slot for r in asking], dtype=torch.int64, device=device),
        prompt_lens=torch.tensor([r.prompt_len for r in asking], dtype=torch.int64, device=device),
        frequency=_column([r.params.frequency_penalty for r in asking], torch.float32, device),
        presence=_column([r.params.presence_penalty for r in asking], torch.float32, device),
        repetition=_column([r.params.repetition_penalty for r in asking], torch.float32, device),
        any_linear=any(linear(r.params) for r in asking),
        any_repetition=any(r.params.repetition_penalty != 1 for r in asking),
    )


def _filters(rows: Sequence[SamplingRow], vocab_size: int, device: torch.device) -> Filters:
    top_k = [min(r.params.top_k, vocab_size) if r.params.top_k > 0 else vocab_size for r in rows]
    by_mass = [r.params.top_p < 1 or r.params.min_p > 0 for r in rows]
    head = max(NUCLEUS_HEAD if mass else k for k, mass in zip(top_k, by_mass))
    off = float("inf")  # probabilities rounded to fp32 may sum to a little more than 1
    top_p = [r.params.top_p if r.params.top_p < 1 else off for r in rows]
    return Filters(
        top_k=_column(top_k, torch.int64, device),
        top_p=_column(top_p, torch.float64, device),
        min_p=_column([r.params.min_p for r in rows], torch.float64, device),
        top_p_logprobs=_column([r.logprobs and r.params.top_p < 1 for r in rows], torch.bool, device),
        any_min_p=any(r.params.min_p > 0 for r in rows),
        head=min(vocab_size, head),
    )
