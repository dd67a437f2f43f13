"""``Sampler``: from logits to one token id per row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from ..errors import RootletError
from ..kernels.token_mask import pack_tokens
from . import penalties as edits
from .batch import SamplingBatch
from .draw import draw, most_probable, uniforms
from .filters import FilteredDraw, draw_filtered, nucleus
from .logprobs import TokenLogprobs, joined, sampled_logprobs
from .penalties import add_biases, ban_until_min
from .processors import Edited, run_processors
from .rows import Rows, SamplingRow
from .scratch import Scratch

if TYPE_CHECKING:
    from ..kernels.gpu.sampling import RowDraw
    from .stages import KeptTokens, ModelLogprobs

__all__ = ["SampleOutput", "Sampler", "SamplingBatch", "SamplingRow"]


@dataclass(frozen=True)
class SampleOutput:
    """One sampled token per row.

    Attributes:
        token_ids: [B] int64.
        logprobs: [B] fp32, NaN in rows that did not ask; None if no row asked.
        top_values, top_ids: [B, K] fp32 and int64, descending, K the longest list asked for; NaN and -1
            in rows that asked for no log-probabilities; None if K is 0.
        kept: [K, ceil(V / 32)] int32, of the K rows that are ``masked``, in order: bit ``t % 32`` of word
            ``t // 32`` says that token ``t`` was kept; None if there are none.
        flags: [B] bool or uint8, not 0 in rows that failed (``processors.explain``): no token
        errors: what ended rows whose logit processor failed, by row; None if nothing did.
    """

    token_ids: torch.Tensor
    logprobs: torch.Tensor | None = None
    top_values: torch.Tensor | None = None
    top_ids: torch.Tensor | None = None
    kept: torch.Tensor | None = None
    flags: torch.Tensor | None = None
    errors: Mapping[int, RootletError] | None = None


class Sampler:
    """Samples tokens; holds nothing but work buffers, so any two samplers agree.

    A row's token is a function of its own logits, parameters, seed and position. Not safe for use by
    several threads at once (the buffers are shared).

    Args:
        vocab_size: V, the width of the logits.
        device: where logits live.
        fused: use the Triton kernels, which never make the host wait for the device. None: on a GPU.
            They draw by the same rule from the same random numbers as the torch path.
    """

    def __init__(self, vocab_size: int, device: torch.device | str, *, fused: bool | None = None) -> None:
        self.vocab_size = vocab_size
        device = torch.device(device)
        self._scratch = Scratch(device)
        self._fused = None
        if device.type == "cuda" if fused is None else fused:
            from . import fused as kernels  # loads triton, which a machine without a GPU need not have

            self._fused = kernels

    @property
    def nbytes(self) -> int:
        """Bytes of its work buffers."""
        return self._scratch.nbytes

    def clear(self) -> None:
        """Let the work buffers go; they come back as they are needed."""
        self._scratch.clear()

    @torch.no_grad()
    def sample(
        self,
        logits: torch.Tensor,
        batch: SamplingBatch,
        positions: torch.Tensor,
        tokens: torch.Tensor,
        allowed_mask: torch.Tensor | None = None,
    ) -> SampleOutput:
        """Choose the next token of every row. The stages, each skipped if no row needs it:

        1. logits to fp32 (the caller's tensor is left alone)
        2. add ``logit_bias``
        3. -inf on stop tokens of rows short of ``min_new_tokens``
        4. presence and frequency penalties
        5. repetition penalty
        6. the callers' own logit processors
        7. -inf where ``allowed_mask`` forbids
        8. greedy rows: the highest logit, the lowest id among equals
        9. other rows: divide by the temperature, softmax
        10. rows with top-k, top-p or min-p: draw among the kept tokens; the rest: draw from all
        11. log-probabilities of rows that ask, and which tokens were kept

        Never raises for what is in the logits or what a processor does: such rows are flagged.

        Args:
            logits: [B, V] bf16, fp16 or fp32.
            batch: the rows' parameters; ``batch.size == B``.
            positions: [B] int64, index of the token being sampled = number of tokens before it.
            tokens: [num_slots, max_tokens] integer token table, read by penalties only.
            allowed_mask: [B, ceil(V / 32)] int32, bit ``t % 32`` of word ``t // 32`` allows token ``t``.
        """
        of_model = logits
        logits, edited = self._process(logits, batch, positions, tokens, allowed_mask)
        found = None
        if self._fused is not None:
            found, filtered = self._fused.draw(logits, batch, positions)
            token_ids, flags = found.token_ids, found.no_token
        else:
            token_ids, weight, filtered = self._choose(logits, batch, positions)
            flags = ~(weight > -torch.inf)  # true of NaN as well
        kept = None if batch.kept is None else self._kept(logits, batch.kept, filtered)
        some = []
        if batch.logprobs.count:
            some.append((batch.logprobs, *self._logprobs(logits, batch, token_ids, filtered, found)))
        if batch.model_logprobs is not None:
            asked, known = batch.model_logprobs, found if logits is of_model else None
            some.append((asked.rows, *self._model_logprobs(of_model, batch, asked, token_ids, known)))
        logprobs, top_values, top_ids = joined(some, batch.size)
        output = SampleOutput(token_ids, logprobs, top_values, top_ids, kept)
        if edited is None:
            return replace(output, flags=flags)
        return replace(output, flags=flags | edited.flags, errors=edited.errors or None)

    def _process(
        self,
        logits: torch.Tensor,
        batch: SamplingBatch,
        positions: torch.Tensor,
        tokens: torch.Tensor,
        allowed_mask: torch.Tensor | None,
    ) -> tuple[torch.Tensor, Edited | None]:
        """Stages 1 to 7: fp32 logits [B, V], the caller's own tensor if nothing had to change; and what
        became of the rows with processors, if any.

        The Triton kernels read any floating dtype, so for them widening alone is no reason to copy.
        """
        wide = logits.dtype == torch.float32 or self._fused is not None
        if not batch.changes_logits and allowed_mask is None and wide:
            return logits, None
        num_rows, width = logits.shape
        logits = self._scratch.get("logits", (num_rows, width)).copy_(logits)
        if batch.biases is not None:
            add_biases(logits, batch.biases)
        if batch.bans is not None:
            ban_until_min(logits, batch.bans, positions)
        stages = edits if self._fused is None else self._fused
        if batch.penalties is not None:
            stages.apply_penalties(logits, batch.penalties, positions, tokens, self._scratch)
        edited = run_processors(logits, batch.processors) if batch.processors else None
        if allowed_mask is not None:
            stages.mask_disallowed(logits, allowed_mask)
        return logits, edited

    def _choose(
        self, logits: torch.Tensor, batch: SamplingBatch, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, FilteredDraw | None]:
        """Stages 8 to 10: token ids [B]; the logits (of greedy rows) or probabilities [B] they were chosen
        by, NaN or -inf if there was no choice; and what the filters did.
        """
        token_ids = torch.empty(batch.size, dtype=torch.int64, device=logits.device)
        weight = torch.empty(batch.size, dtype=torch.float32, device=logits.device)
        filtered = None
        if batch.greedy.count:
            rows = batch.greedy.take(logits)
            chosen = most_probable(rows)
            batch.greedy.put(token_ids, chosen)
            batch.greedy.put(weight, rows.gather(1, chosen.unsqueeze(1)).squeeze(1))
        if batch.sampled.count:
            chosen, probs, filtered = self._draw(logits, batch, positions)
            batch.sampled.put(token_ids, chosen)
            batch.sampled.put(weight, probs.gather(1, chosen.unsqueeze(1)).squeeze(1))
        return token_ids, weight, filtered

    def _draw(
        self, logits: torch.Tensor, batch: SamplingBatch, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, FilteredDraw | None]:
        """Stages 9 and 10: token ids [S] of the sampled rows, probabilities [S, V], what the filters did."""
        rows = batch.sampled
        shape = (rows.count, self.vocab_size)
        scores = self._scratch.get("scores", shape)
        torch.div(rows.take(logits), rows.take(batch.temperature), out=scores)
        probs = torch.softmax(scores, 1, out=self._scratch.get("probs", shape))
        uniform = uniforms(rows.take(batch.keys), rows.take(positions))
        token_ids = torch.empty(rows.count, dtype=torch.int64, device=logits.device)
        if batch.plain.count:
            drawn = draw(batch.plain.take(probs), batch.plain.take(uniform), self._scratch)
            batch.plain.put(token_ids, drawn)
        if batch.filters is None:
            return token_ids, probs, None
        filtered = draw_filtered(batch.filtered.take(probs), batch.filtered.take(uniform), batch.filters)
        batch.filtered.put(token_ids, filtered.token_ids)
        return token_ids, probs, filtered

    def _logprobs(
        self,
        logits: torch.Tensor,
        batch: SamplingBatch,
        token_ids: torch.Tensor,
        filtered: FilteredDraw | None,
        found: RowDraw | None,
    ) -> TokenLogprobs:
        """Stage 11 of the rows that go by the edited ``logits``.

        ``found``: what the Triton kernels know of the rows, which spares log_softmax its passes.
        """
        if self._fused is not None and found is not None:
            return self._fused.logprobs(logits, batch, found, filtered)
        rows = batch.logprobs
        kept = None
        if filtered is not None:
            mass, count = nucleus(batch, filtered)
            kept = rows.take(mass), rows.take(count)
        return self._scored(logits, rows, rows.take(batch.temperature), token_ids, kept, batch.top_logprobs)

    def _model_logprobs(
        self,
        logits: torch.Tensor,
        batch: SamplingBatch,
        asked: ModelLogprobs,
        token_ids: torch.Tensor,
        found: RowDraw | None,
    ) -> TokenLogprobs:
        """Stage 11 of the rows that go by ``logits`` as the model computed them.

        ``found``: what the Triton kernels know of these logits; None if they were edited for the draw.
        """
        if self._fused is not None:
            return self._fused.model_logprobs(logits, batch, asked, token_ids, found)
        return self._scored(logits, asked.rows, asked.temperature, token_ids, None, asked.top)

    def _scored(
        self,
        logits: torch.Tensor,
        rows: Rows,
        temperature: torch.Tensor,
        token_ids: torch.Tensor,
        kept: tuple[torch.Tensor, torch.Tensor] | None,
        top: int,
    ) -> TokenLogprobs:
        shape = (rows.count, self.vocab_size)
        scores = self._scratch.get("scores", shape)
        torch.div(rows.take(logits), temperature, out=scores)
        work = self._scratch.get("probs", shape)
        return sampled_logprobs(scores, rows.take(token_ids), kept, top, work)

    def _kept(self, logits: torch.Tensor, asked: KeptTokens, filtered: FilteredDraw | None) -> torch.Tensor:
        """Which tokens are kept in the rows that ask [K, ceil(V / 32)] int32: neither banned nor cut off."""
        if self._fused is not None:
            words = self._fused.pack_allowed(logits, asked.rows.index)
        else:
            words = pack_tokens(asked.rows.take(logits) > -torch.inf)
        if filtered is not None and filtered.kept is not None:
            uncut = asked.places.take(filtered.kept)
            asked.filtered.put(words, asked.filtered.take(words) & uncut)
        return words
