"""``SamplingBatch``: the parameters of a batch's rows as tensors, and which stages anybody needs.

Built on the host from the rows; reusable for as many steps as the rows stay the same. What changes from
step to step (logits, positions, the token table) is passed to ``Sampler.sample``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .distributions import OF_MODEL
from .processors import ProcessorGroup, group_processors
from .rows import Rows, SamplingRow, records_of
from .stages import (
    Bans,
    Biases,
    Filters,
    KeptTokens,
    ModelLogprobs,
    Penalties,
    are_filtered,
    column,
    tensor,
)
from .upload import upload

GREEDY, GREEDY_WITH_TOTAL, PLAIN, FILTERED = range(4)
"""Kinds of rows, as the GPU kernels know them: greedy, greedy with log-probabilities, drawn from all tokens,
drawn from those that top-k, top-p and min-p keep."""


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
        logprobs: rows whose log-probabilities are wanted, of the edited logits; ``top_logprobs`` is the
            largest wanted list.
        model_logprobs: rows that want those of the logits as the model computed them.
        kept: rows that want to know which tokens were kept.
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
    model_logprobs: ModelLogprobs | None
    kept: KeptTokens | None
    processors: tuple[ProcessorGroup, ...]

    @classmethod
    def build(cls, rows: Sequence[SamplingRow], vocab_size: int, device: torch.device | str) -> SamplingBatch:
        """Lay out ``rows`` (row i of the logits belongs to ``rows[i]``) for a vocabulary of ``vocab_size``.

        Token ids in the parameters must be below ``vocab_size`` (``SamplingParams.check_vocab``). A GPU gets
        everything in one copy, which the host does not wait for.
        """
        device = torch.device(device)
        size, records = len(rows), records_of(rows)
        greedy, asking = records["greedy"], records["logprobs"]
        filtered = are_filtered(records, vocab_size) & ~greedy
        drawn = filtered[~greedy]
        kinds = np.where(greedy, GREEDY, PLAIN)
        kinds[greedy & asking] = GREEDY_WITH_TOTAL
        kinds[filtered] = FILTERED
        edited, model_logprobs, kept = asking, None, None
        if records["asks"].any():
            edited = asking & (records["asks"] & OF_MODEL == 0)
            model_logprobs = ModelLogprobs.build(records, vocab_size)
            kept = KeptTokens.build(records, filtered)
        batch = cls(
            size=size,
            vocab_size=vocab_size,
            keys=tensor(records["key"]),
            kinds=tensor(kinds.astype(np.int32)),
            temperature=column(records["temperature"]),
            biases=Biases.build(rows, records, vocab_size),
            bans=Bans.build(rows, records, vocab_size),
            penalties=Penalties.build(records),
            greedy=Rows.where(greedy),
            sampled=Rows.where(~greedy),
            plain=Rows.where(~drawn),
            filtered=Rows.where(drawn),
            filtered_in_batch=Rows.where(filtered),
            filters=Filters.build(records.compress(filtered), vocab_size),
            logprobs=Rows.where(edited),
            top_logprobs=min(vocab_size, int(records["top_logprobs"].max(initial=0, where=edited))),
            model_logprobs=model_logprobs,
            kept=kept,
            processors=group_processors(rows, np.flatnonzero(records["processed"]).tolist(), device),
        )
        return batch if device.type == "cpu" else upload(batch, device)

    @property
    def changes_logits(self) -> bool:
        """True if some row's logits are edited before the choice (grammar masks aside)."""
        edited = self.biases is not None or self.bans is not None or self.penalties is not None
        return edited or bool(self.processors)
