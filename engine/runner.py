"""Turns a :class:`Batch` into tensors, runs the model and draws tokens. The only scheduler-side torch user.

``launch`` only enqueues work; what it sampled stays on the device, where the next launch finds it in the
slot tables. ``LaunchedStep.wait`` is the one copy to the host. Between the two the scheduler may already
plan and launch the next step.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import is_
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..kernels.attention import PagedAttentionPlan
from ..models.forward import ForwardInput
from ..sampling.logprobs import prompt_logprobs
from ..sampling.sampler import SampleOutput, Sampler, SamplingBatch, SamplingRow
from .batch import Batch, BatchRow, StepResult
from .request import TokenLogprob

if TYPE_CHECKING:
    from ..cache.kv_cache import KVCache
    from ..cache.slot_tables import SlotTables
    from ..models.layers.decoder import CausalLM

# Positions whose vocabulary-wide logits exist at once while a prompt is scored: bounds peak memory.
SCORE_CHUNK = 256


@dataclass(frozen=True)
class PromptScores:
    """Log-probabilities of consecutive prompt tokens, still on the device."""

    row: int  # index into batch.rows
    target_ids: torch.Tensor  # [n] int64
    logprobs: torch.Tensor  # [n] fp32
    top_values: torch.Tensor | None  # [n, K] fp32
    top_ids: torch.Tensor | None  # [n, K] int64


@dataclass(frozen=True)
class LaunchedStep:
    """A step whose kernels are enqueued; ``wait`` blocks until its tokens are on the host."""

    batch: Batch
    sampled: SampleOutput | None
    scores: tuple[PromptScores, ...]

    def wait(self) -> StepResult:
        """Copy the results to the host."""
        if self.sampled is None:
            return StepResult([], None, self._prompt_scores())
        token_ids = self.sampled.token_ids.tolist()
        return StepResult(token_ids, self._logprobs(token_ids), self._prompt_scores())

    def _logprobs(self, token_ids: list[int]) -> list[TokenLogprob | None] | None:
        if self.sampled.logprobs is None:
            return None
        logprobs = self.sampled.logprobs.tolist()
        values, ids = _to_lists(self.sampled.top_values), _to_lists(self.sampled.top_ids)
        result: list[TokenLogprob | None] = []
        for i, row in enumerate(self.batch.sampling_rows):
            options = row.request.logprobs
            if options is None:
                result.append(None)
                continue
            top = tuple(zip(values[i], ids[i]))[: options.top] if options.top else None
            result.append(TokenLogprob(logprobs[i], token_ids[i], top))
        return result

    def _prompt_scores(self) -> dict[int, list[TokenLogprob]] | None:
        if not self.scores:
            return None
        result: dict[int, list[TokenLogprob]] = {}
        for part in self.scores:
            ids, logprobs = part.target_ids.tolist(), part.logprobs.tolist()
            values, top_ids = _to_lists(part.top_values), _to_lists(part.top_ids)
            tops = [tuple(zip(v, t)) for v, t in zip(values, top_ids)] if values else [None] * len(ids)
            result.setdefault(part.row, []).extend(
                TokenLogprob(logprob, token, top) for logprob, token, top in zip(logprobs, ids, tops)
            )
        return result


class ModelRunner:
    """Runs batches on one device. Owns the slot tables' contents; knows nothing of queues or text."""

    def __init__(self, model: CausalLM, kv: KVCache, tables: SlotTables, sampler: Sampler) -> None:
        self.model = model
        self.kv = kv
        self.tables = tables
        self.sampler = sampler
        self._sampling_rows: list[SamplingRow] = []
        self._sampling_batch: SamplingBatch | None = None

    def close(self) -> None:
        """Let go of the model and everything on the device."""
        self.model = self.kv = self.tables = self._sampling_batch = None

    @torch.inference_mode()
    def launch(self, batch: Batch) -> LaunchedStep:
        """Enqueue one step: table updates, forward pass, prompt scores, sampling."""
        self._apply_updates(batch)
        inputs = self._build_input(batch)
        hidden = self.model.forward(inputs, self.kv)
        scores = tuple(self._score_prompts(batch, hidden))
        return LaunchedStep(batch, self._sample(batch, hidden), scores)

    def _apply_updates(self, batch: Batch) -> None:
        if batch.token_writes or batch.page_writes:
            self.tables.write([(w.slot, 0, w.ids) for w in batch.token_writes], batch.page_writes)
        if batch.page_copies:
            sources, destinations = zip(*batch.page_copies)
            self.kv.copy_pages(list(sources), list(destinations))

    def _build_input(self, batch: Batch) -> ForwardInput:
        """Positions come from the host; token ids and pages from the device tables."""
        device = self.tables.tokens.device
        page_size = self.kv.spec.page_size
        slots = np.array([row.slot for row in batch.rows], dtype=np.int64)
        starts = np.array([row.start for row in batch.rows], dtype=np.int64)
        counts = np.array([row.num_tokens for row in batch.rows], dtype=np.int64)
        q_starts = np.zeros(len(slots) + 1, dtype=np.int32)
        np.cumsum(counts, out=q_starts[1:])
        # token t of row r sits at position starts[r] + (t - q_starts[r])
        positions = np.arange(q_starts[-1]) + np.repeat(starts - q_starts[:-1], counts)
        token_slots = torch.from_numpy(np.repeat(slots, counts)).to(device)
        positions = torch.from_numpy(positions).to(device)
        kv_lens = starts + counts
        max_kv = int(kv_lens.max())
        num_pages = -(-max_kv // page_size)
        page_table = self.tables.pages[torch.from_numpy(slots).to(device), :num_pages]
        pages = self.tables.pages[token_slots, positions // page_size].long()
        return ForwardInput(
            input_ids=self.tables.tokens[token_slots, positions].long(),
            positions=positions,
            kv_slots=pages * page_size + positions % page_size,
            attention=PagedAttentionPlan(
                page_table=page_table.contiguous(),
                q_starts=torch.from_numpy(q_starts).to(device),
                kv_lens=torch.from_numpy(kv_lens.astype(np.int32)).to(device),
                page_size=page_size,
                max_q=int(counts.max()),
                max_kv=max_kv,
            ),
        )

    def _sample(self, batch: Batch, hidden: torch.Tensor) -> SampleOutput | None:
        rows, last, end = [], [], 0
        for row in batch.rows:
            end += row.num_tokens
            if row.samples:
                rows.append(row)
                last.append(end - 1)
        if not rows:
            return None
        device = hidden.device
        if len(last) < len(hidden):  # in a pure decode step every token samples
            hidden = hidden[torch.tensor(last, device=device)]
        logits = self.model.compute_logits(hidden)
        positions = torch.tensor([row.end for row in rows], device=device)
        sampled = self.sampler.sample(logits, self._sampling(rows), positions, self.tables.tokens)
        slots = torch.tensor([row.slot for row in rows], device=device)
        # The last token of a full context has no next step; its column would lie outside the table.
        inside = positions.clamp(max=self.tables.tokens.shape[1] - 1)
        self.tables.tokens[slots, inside] = sampled.token_ids.to(self.tables.tokens.dtype)
        return sampled

    def _sampling(self, rows: list[BatchRow]) -> SamplingBatch:
        """The sampling tensors of these rows, rebuilt only when the rows change."""
        wanted = [row.request.sampling_row for row in rows]
        same = len(wanted) == len(self._sampling_rows) and all(map(is_, wanted, self._sampling_rows))
        if self._sampling_batch is None or not same:
            device = self.tables.tokens.device
            self._sampling_batch = SamplingBatch.build(wanted, self.sampler.vocab_size, device)
            self._sampling_rows = wanted
        return self._sampling_batch

    def _score_prompts(self, batch: Batch, hidden: torch.Tensor):
        """Yield :class:`PromptScores` for rows that want them, in chunks of ``SCORE_CHUNK`` positions."""
        begin = 0
        for index, row in enumerate(batch.rows):
            if row.score is not None:
                top = row.request.logprobs.top
                for first in range(*row.score, SCORE_CHUNK):
                    last = min(first + SCORE_CHUNK, row.score[1])
                    offset = begin - row.start
                    logits = self.model.compute_logits(hidden[first + offset : last + offset])
                    targets = self.tables.tokens[row.slot, first + 1 : last + 1].long()
                    logprobs, values, ids = prompt_logprobs(logits, targets, top)
                    yield PromptScores(index, targets, logprobs, values, ids)
            begin += row.num_tokens


def _to_lists(tensor: torch.Tensor | None) -> list | None:
    return None if tensor is None else tensor.tolist()
