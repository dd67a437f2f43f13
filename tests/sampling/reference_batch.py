"""What ``SamplingBatch.build`` must equal: every tensor built row by row and field by field."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rootlet.sampling.batch import FILTERED, GREEDY, GREEDY_WITH_TOTAL, PLAIN, SamplingBatch
from rootlet.sampling.distributions import KEPT_CUT, NO_CUT, TOP_P_CUT
from rootlet.sampling.params import SamplingParams
from rootlet.sampling.processors import ProcessorGroup
from rootlet.sampling.rows import Rows, SamplingRow
from rootlet.sampling.seeds import stream_key
from rootlet.sampling.stages import (
    NUCLEUS_HEAD,
    Bans,
    Biases,
    Filters,
    KeptTokens,
    ModelLogprobs,
    Penalties,
)

MAX_TEMPERATURE = 1e30


def build_by_rows(rows: Sequence[SamplingRow], vocab_size: int) -> SamplingBatch:
    """The batch of ``rows`` on the CPU."""
    size = len(rows)
    kinds = [_kind(row, vocab_size) for row in rows]
    greedy = [i for i, kind in enumerate(kinds) if kind < PLAIN]
    sampled = [i for i, kind in enumerate(kinds) if kind >= PLAIN]
    filtered = [at for at, i in enumerate(sampled) if kinds[i] == FILTERED]
    plain = [at for at, i in enumerate(sampled) if kinds[i] == PLAIN]
    of_model = [i for i, row in enumerate(rows) if row.logprobs and row.logprobs_of in ("raw", "tempered")]
    asking = [i for i, row in enumerate(rows) if row.logprobs and i not in of_model]
    temperature = [
        1.0 if kind < PLAIN else min(row.params.temperature, MAX_TEMPERATURE)
        for row, kind in zip(rows, kinds)
    ]
    keys = [0 if kind < PLAIN else stream_key(row.seed) for row, kind in zip(rows, kinds)]
    return SamplingBatch(
        size=size,
        vocab_size=vocab_size,
        keys=torch.tensor(keys, dtype=torch.int64, device="cpu"),
        kinds=torch.tensor(kinds, dtype=torch.int32, device="cpu"),
        temperature=_column(temperature, torch.float32),
        biases=_biases(rows, vocab_size),
        bans=_bans(rows, vocab_size),
        penalties=_penalties(rows),
        greedy=_subset(greedy, size),
        sampled=_subset(sampled, size),
        plain=_subset(plain, len(sampled)),
        filtered=_subset(filtered, len(sampled)),
        filtered_in_batch=_subset([sampled[at] for at in filtered], size),
        filters=_filters([rows[sampled[at]] for at in filtered], vocab_size) if filtered else None,
        logprobs=_subset(asking, size),
        top_logprobs=min(vocab_size, max((rows[i].top_logprobs for i in asking), default=0)),
        model_logprobs=_model_logprobs(rows, of_model, temperature, vocab_size),
        kept=_kept(rows, [sampled[at] for at in filtered]),
        processors=_processors(rows),
    )


def _model_logprobs(
    rows: Sequence[SamplingRow], index: Sequence[int], drawn_at: Sequence[float], vocab_size: int
) -> ModelLogprobs | None:
    if not index:
        return None

    def temperature(row: SamplingRow) -> float:
        greedy = row.logprobs_of == "raw" or row.params.temperature < 1e-6
        return 1.0 if greedy else min(row.params.temperature, MAX_TEMPERATURE)

    heats = _column([temperature(rows[i]) for i in index], torch.float32)
    return ModelLogprobs(
        _subset(index, len(rows)),
        min(vocab_size, max(rows[i].top_logprobs for i in index)),
        heats,
        as_drawn=torch.equal(heats, _column([drawn_at[i] for i in index], torch.float32)),
    )


def _kept(rows: Sequence[SamplingRow], filtered: Sequence[int]) -> KeptTokens | None:
    asking = [i for i, row in enumerate(rows) if row.masked]
    if not asking:
        return None
    return KeptTokens(
        _subset(asking, len(rows)),
        _subset([at for at, i in enumerate(asking) if i in filtered], len(asking)),
        _subset([at for at, i in enumerate(filtered) if i in asking], len(filtered)),
    )


def _cut(row: SamplingRow) -> int:
    if not row.logprobs or row.logprobs_of in ("raw", "tempered"):
        return NO_CUT
    if row.logprobs_of == "sampled":
        return KEPT_CUT
    return TOP_P_CUT if row.params.top_p < 1 else NO_CUT


def _subset(index: Sequence[int], total: int) -> Rows:
    whole = len(index) == total
    return Rows(None if whole else torch.tensor(index, dtype=torch.int64, device="cpu"), len(index))


def _processors(rows: Sequence[SamplingRow]) -> tuple[ProcessorGroup, ...]:
    groups: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        if row.processor is not None:
            groups.setdefault(id(row.processor), []).append(i)
    return tuple(
        ProcessorGroup(
            rows[index[0]].processor,
            index,
            torch.tensor(index, dtype=torch.int64, device="cpu"),
            [rows[i].custom_params for i in index],
        )
        for index in groups.values()
    )


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
        rows=_subset(index, len(rows)),
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
        cut=_column([_cut(r) for r in rows], torch.uint8),
        any_min_p=any(r.params.min_p > 0 for r in rows),
        wants_kept=any(r.masked for r in rows),
        head=min(vocab_size, head),
    )
