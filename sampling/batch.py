"""``SamplingBatch``: the parameters of a batch's rows as tensors, and which stages anybody needs.

Built on the host from the rows; reusable for as many steps as the rows stay the same. What changes from
step to step (logits, positions, the token table) is passed to ``Sampler.sample``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch

from .params import SamplingParams
from .processors import ProcessorGroup, group_processors
from .rows import Rows, SamplingRow
from .seeds import stream_key

NUCLEUS_HEAD = 1024
"""How many of the most probable tokens top-p and min-p look at before they look at the whole row."""

GREEDY, GREEDY_WITH_TOTAL, PLAIN, FILTERED = range(4)
"""Kinds of rows, as the GPU kernels know them: greedy, greedy with log-probabilities, drawn from all tokens,
drawn from those that top-k, top-p and min-p keep."""

_MAX_TEMPERATURE = 1e30  # beyond it a banned token's -inf would be divided by fp32 infinity, giving NaN


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
        keys: [B] int64, start of each row's random stream; 0 for greedy rows.
        kinds: [B] int32, GREEDY, GREEDY_WITH_TOTAL, PLAIN or FILTERED.
        temperature: [B, 1] fp32; 1 for greedy rows.
        greedy, sampled: a partition of the B rows.
        plain, filtered: a partition of the *sampled* rows (indices into them) by whether ``filters`` applies;
            ``filtered_in_batch`` are the filtered ones as indices into all B.
        logprobs: rows whose log-probabilities are wanted; ``top_logprobs`` is the largest wanted list.
        processors: the callers' own edits, each with its rows.
    """

    size: int
    vocab_size: int
    keys: torch.Tensor
    kinds: torch.Tensor
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
    processors: tuple[ProcessorGroup, ...]

    @classmethod
    def build(cls, rows: Sequence[SamplingRow], vocab_size: int, device: torch.device | str) -> SamplingBatch:
        """Lay out ``rows`` (row i of the logits belongs to ``rows[i]``) for a vocabulary of ``vocab_size``.

        Token ids in the parameters must be below ``vocab_size`` (``SamplingParams.check_vocab``). A GPU gets
        everything in one copy, which the host does not wait for.
        """
        device = torch.device(device)
        size = len(rows)
        kinds = [_kind(row, vocab_size) for row in rows]
        greedy = [i for i, kind in enumerate(kinds) if kind < PLAIN]
        sampled = [i for i, kind in enumerate(kinds) if kind >= PLAIN]
        filtered = [at for at, i in enumerate(sampled) if kinds[i] == FILTERED]
        plain = [at for at, i in enumerate(sampled) if kinds[i] == PLAIN]
        asking = [i for i, row in enumerate(rows) if row.logprobs]
        temperature = [
            1.0 if kind < PLAIN else min(row.params.temperature, _MAX_TEMPERATURE)
            for row, kind in zip(rows, kinds)
        ]
        keys = [0 if kind < PLAIN else stream_key(row.seed) for row, kind in zip(rows, kinds)]
        batch = cls(
            size=size,
            vocab_size=vocab_size,
            keys=torch.tensor(keys, dtype=torch.int64, device="cpu"),
            kinds=torch.tensor(kinds, dtype=torch.int32, device="cpu"),
            temperature=_column(temperature, torch.float32),
            biases=_biases(rows, vocab_size),
            bans=_bans(rows, vocab_size),
            penalties=_penalties(rows),
            greedy=Rows.build(greedy, size),
            sampled=Rows.build(sampled, size),
            plain=Rows.build(plain, len(sampled)),
            filtered=Rows.build(filtered, len(sampled)),
            filtered_in_batch=Rows.build([sampled[at] for at in filtered], size),
            filters=_filters([rows[sampled[at]] for at in filtered], vocab_size) if filtered else None,
            logprobs=Rows.build(asking, size),
            top_logprobs=min(vocab_size, max((rows[i].top_logprobs for i in asking), default=0)),
            processors=group_processors(rows, device),
        )
        return batch if device.type == "cpu" else upload(batch, device)

    @property
    def is_argmax(self) -> bool:
        """Every row wants just the highest of the model's own logits (grammar masks aside)."""
        return self.greedy.count == self.size and not (self.logprobs.count or self.changes_logits)

    @property
    def changes_logits(self) -> bool:
        """True if some row's logits are edited before the choice (grammar masks aside)."""
        edited = self.biases is not None or self.bans is not None or self.penalties is not None
        return edited or bool(self.processors)


_ALIGNMENT = 16  # bytes: what kernels load at once, and a multiple of every element size


def upload(batch: Any, device: torch.device) -> Any:
    """A copy of a dataclass whose tensors, at any depth, lie on ``device``: one transfer for all of them.

    The transfer is enqueued on the current stream; the host does not wait for it.
    """
    tensors = list(_tensors(batch))
    starts, size = [], 0
    for tensor in tensors:
        starts.append(size)
        size += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
    host = torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda", device="cpu")

    def part(buffer: torch.Tensor, start: int, like: torch.Tensor) -> torch.Tensor:
        return buffer[start : start + like.nbytes].view(like.dtype).view(like.shape)

    for start, tensor in zip(starts, tensors):
        part(host, start, tensor).copy_(tensor)
    # torch keeps the pinned memory from being reused before the copy has read it
    there = host.to(device, non_blocking=True, copy=True)
    moved = iter([part(there, start, tensor) for start, tensor in zip(starts, tensors)])
    return _map_tensors(batch, lambda _: next(moved))


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))


def _map_tensors(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """``value`` with every tensor replaced, in the order of ``_tensors``."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if not is_dataclass(value) or isinstance(value, type):
        return value
    return replace(value, **{f.name: _map_tensors(getattr(value, f.name), change) for f in fields(value)})


def _column(values: list, dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype, device="cpu").unsqueeze(1)


def _kind(row: SamplingRow, vocab_size: int) -> int:
    if row.params.is_greedy:
        return GREEDY_WITH_TOTAL if row.logprobs else GREEDY
    return FILTERED if _has_filter(row.params, vocab_size) else PLAIN


def _has_filter(params: SamplingParams, vocab_size: int) -> bool:
    return 1 <= params.top_k < vocab_size or params.top_p < 1 or params.min_p > 0


def _biases(rows: Sequence[SamplingRow], vocab_size: int) -> Biases | None:
    entries = [
        (i * vocab_size + token, bias)
        for i, row in enumerate(rows)
        for token, bias in (row.params.logit_bias or {}).items()
    ]
    if not entries:
        return None
    flat, values = zip(*entries)
    return Biases(
        torch.tensor(flat, dtype=torch.int64, device="cpu"),
        torch.tensor(values, dtype=torch.float32, device="cpu"),
    )


def _bans(rows: Sequence[SamplingRow], vocab_size: int) -> Bans | None:
    entries = [
        (i * vocab_size + token, i, row.prompt_len + row.params.min_new_tokens)
        for i, row in enumerate(rows)
        if row.params.min_new_tokens > 0
        for token in dict.fromkeys(row.banned_until_min)
    ]
    if not entries:
        return None
    flat, row, until = torch.tensor(entries, dtype=torch.int64, device="cpu").unbind(1)
    return Bans(flat.contiguous(), row.contiguous(), until.contiguous())


def _penalties(rows: Sequence[SamplingRow]) -> Penalties | None:
    def linear(p: SamplingParams) -> bool:
        return p.frequency_penalty != 0 or p.presence_penalty != 0

    index = [i for i, r in enumerate(rows) if linear(r.params) or r.params.repetition_penalty != 1]
    if not index:
        return None
    asking = [rows[i] for i in index]
    return Penalties(
        rows=Rows.build(index, len(rows)),
        slots=torch.tensor([r.slot for r in asking], dtype=torch.int64, device="cpu"),
        prompt_lens=torch.tensor([r.prompt_len for r in asking], dtype=torch.int64, device="cpu"),
        frequency=_column([r.params.frequency_penalty for r in asking], torch.float32),
        presence=_column([r.params.presence_penalty for r in asking], torch.float32),
        repetition=_column([r.params.repetition_penalty for r in asking], torch.float32),
        any_linear=any(linear(r.params) for r in asking),
        any_repetition=any(r.params.repetition_penalty != 1 for r in asking),
    )


def _filters(rows: Sequence[SamplingRow], vocab_size: int) -> Filters:
    top_k = [min(r.params.top_k, vocab_size) if r.params.top_k > 0 else vocab_size for r in rows]
    by_mass = [r.params.top_p < 1 or r.params.min_p > 0 for r in rows]
    head = max(NUCLEUS_HEAD if mass else k for k, mass in zip(top_k, by_mass))
    off = float("inf")  # probabilities rounded to fp32 may sum to a little more than 1
    top_p = [r.params.top_p if r.params.top_p < 1 else off for r in rows]
    return Filters(
        top_k=_column(top_k, torch.int64),
        top_p=_column(top_p, torch.float64),
        min_p=_column([r.params.min_p for r in rows], torch.float64),
        top_p_logprobs=_column([r.logprobs and r.params.top_p < 1 for r in rows], torch.bool),
        any_min_p=any(r.params.min_p > 0 for r in rows),
        head=min(vocab_size, head),
    )
