"""Turns a :class:`Batch` into tensors, runs the model and draws tokens. The only scheduler-side torch user.

``launch`` only enqueues work; what it sampled stays on the device, where the next launch finds it in the
slot tables. ``LaunchedStep.wait`` is the one copy to the host. Between the two the scheduler may already
plan and launch the next step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from operator import is_
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

import torch

from ...errors import RootletError
from ...kernels.device import STREAMS
from ...sampling.batch import SamplingBatch
from ...sampling.logprobs import prompt_logprobs
from ...sampling.rows import SamplingRow
from ...sampling.sampler import Sampler
from ..schedule.batch import Batch
from .grammar_masks import GrammarMasks
from .hidden_states import CollectedStates, Piece, wanted_pieces
from .input_embeds import replaced_embeds
from .launched import HostCopy, LaunchedStep, PromptScores, copy_sampled
from .torch_inputs import StepInput

if TYPE_CHECKING:
    from ...cache.kv_cache import KVCache
    from ...cache.slot_tables import SlotTables
    from ...models.interface import Model
    from .threads import StepThreads

NO_ERRORS: Mapping[int, RootletError] = MappingProxyType({})

# Positions whose vocabulary-wide logits exist at once while a prompt is scored: bounds peak memory.
SCORE_CHUNK = 256


class Inputs(Protocol):
    """Builds a step's tensors and takes its sampled tokens."""

    def build(self, batch: Batch, *, all_states: bool = False) -> StepInput:
        """The inputs of one step; with ``all_states`` the forward pass computes those of every token."""

    def store(self, step: StepInput, token_ids: torch.Tensor) -> None:
        """Put sampled ids [S] where the next step finds them."""

    def copy_pages(self, kv: KVCache, copies: Sequence[tuple[int, int]]) -> None:
        """Copy pages (source, destination) in every layer, all as if at once."""


class Graphs(Protocol):
    """Decode steps recorded once and replayed."""

    def fits(self, batch: Batch) -> bool:
        """Whether a recorded step can compute this batch."""

    def replay(self, batch: Batch, *, greedy: bool) -> tuple[torch.Tensor, StepInput | None]:
        """Enqueue the step: greedy token ids [B] already stored, or hidden states [B, H] and their input."""


class ModelRunner:
    """Runs batches on one device. Owns the slot tables' contents; knows nothing of queues or text.

    ``embeds``: of the last token of each request it computes an embedding instead of drawing the next.
    ``threads``: those that compute on a CPU; default: the caller's, as torch is set.
    """

    def __init__(
        self,
        model: Model,
        kv: KVCache,
        tables: SlotTables,
        sampler: Sampler,
        inputs: Inputs,
        graphs: Graphs | None = None,
        *,
        embeds: bool = False,
        threads: StepThreads | None = None,
    ) -> None:
        self.model = model
        self.kv = kv
        self.tables = tables
        self.sampler = sampler
        self._inputs = inputs
        self._graphs = graphs
        self._embeds = embeds
        self._threads = threads
        self._device = kv.device
        # A stream of our own: what the host program does on its streams neither waits for us nor we for it.
        self._stream = STREAMS.borrow(kv.device) if kv.device.type == "cuda" else None
        self._masks = GrammarMasks(sampler.vocab_size, kv.device)
        self._sampling_rows: list[SamplingRow] = []
        self._sampling_batch: SamplingBatch | None = None

    def close(self) -> None:
        """Wait for the device, then let go of the model and everything on it."""
        if self._stream is not None:
            STREAMS.give_back(self._stream, self._device)
        self.model = self.kv = self.tables = self.sampler = None
        self._inputs = self._graphs = self._stream = self._sampling_batch = None
        if self._threads is not None:
            self._threads.close()

    @torch.inference_mode()
    def launch(self, batch: Batch) -> LaunchedStep:
        """Enqueue one step: table updates, forward pass, prompt scores, sampling.

        With rows that have a grammar sampling is left to :meth:`LaunchedStep.draw`, for their masks need the
        tokens of the step before.
        """
        pieces = wanted_pieces(batch)
        with self._placed():
            self._apply_updates(batch)
            embeds = replaced_embeds(batch, self._device, self.model.dtype)
            if self._graphs is not None and embeds is None and self._graphs.fits(batch):
                # A greedy recording looks for no NaN, so it takes no first tokens: broken models fail there.
                plain = not (pieces or batch.other_rows or batch.has_grammars)
                return self._launch_graph(batch, pieces, greedy=plain and self._sampling(batch).is_argmax)
            is_scored = any(row.score is not None for row in batch.other_rows)
            step = self._inputs.build(batch, all_states=is_scored or bool(pieces))
            forward = step.forward if embeds is None else replace(step.forward, embeds=embeds)
            hidden = self.model.forward(forward, self.kv)
            scores = tuple(self._score_prompts(batch, hidden))
            states = CollectedStates.begin(pieces, hidden)
            # a model of the user's own may compute all states always
            if step.last_tokens is not None and len(hidden) > len(step.last_tokens):
                hidden = hidden.index_select(0, step.last_tokens)
            if self._embeds:
                return LaunchedStep(batch, self._embed(hidden), scores, states)
            return self._drawing(LaunchedStep(batch, None, scores, states), hidden, step)

    def _launch_graph(self, batch: Batch, pieces: list[Piece], *, greedy: bool) -> LaunchedStep:
        if greedy:
            token_ids, _ = self._graphs.replay(batch, greedy=True)
            return LaunchedStep(batch, HostCopy({"token_ids": token_ids}))
        hidden, step = self._graphs.replay(batch, greedy=False)  # a token is drawn after each: T is S
        states = CollectedStates.begin(pieces, hidden)
        return self._drawing(LaunchedStep(batch, None, states=states), hidden, step)

    def _drawing(self, launched: LaunchedStep, hidden: torch.Tensor, step: StepInput) -> LaunchedStep:
        """Draw a token after each of ``hidden`` [S, H]: now, or when the grammars are up to date."""
        if launched.batch.has_grammars and len(hidden):
            launched.pending = partial(self._draw_masked, launched.batch, hidden, step)
        else:
            launched.sampled = self._sample(launched.batch, hidden, step)
        return launched

    @torch.inference_mode()
    def _draw_masked(self, batch: Batch, hidden: torch.Tensor, step: StepInput) -> HostCopy | None:
        with self._placed():
            masks, errors = self._masks.fill(batch)
            return self._sample(batch, hidden, step, masks, errors)

    def _placed(self) -> contextlib.AbstractContextManager:
        """Compute on the engine's own stream, or with its own threads."""
        if self._stream is not None:
            return torch.cuda.stream(self._stream)
        return contextlib.nullcontext() if self._threads is None else self._threads.step()

    def _apply_updates(self, batch: Batch) -> None:
        if batch.token_writes or batch.page_writes:
            self.tables.write(batch.token_writes, batch.page_writes)
        if batch.page_copies:
            self._inputs.copy_pages(self.kv, batch.page_copies)

    def _sample(
        self,
        batch: Batch,
        hidden: torch.Tensor,
        step: StepInput,
        masks: torch.Tensor | None = None,
        errors: Mapping[int, RootletError] = NO_ERRORS,
    ) -> HostCopy | None:
        """Draw a token after each of ``hidden`` [S, H]."""
        if not len(hidden):
            return None
        logits = self.model.compute_logits(hidden)
        sampled = self.sampler.sample(
            logits, self._sampling(batch), step.sample_positions, self.tables.tokens, masks
        )
        self._inputs.store(step, sampled.token_ids)
        return copy_sampled(sampled, errors)

    def _embed(self, hidden: torch.Tensor) -> HostCopy | None:
        """Embeddings of ``hidden`` [S, H] instead of tokens; a request's only token is nobody's."""
        if not len(hidden):
            return None
        token_ids = torch.zeros(len(hidden), dtype=torch.int64, device="cpu")
        return HostCopy({"token_ids": token_ids, "embeddings": self.model.compute_embeddings(hidden)})

    def _sampling(self, batch: Batch) -> SamplingBatch:
        """The sampling tensors of these rows, rebuilt only when the rows change."""
        wanted = [request.sampling_row for request in batch.sampling_requests]
        same = len(wanted) == len(self._sampling_rows) and all(map(is_, wanted, self._sampling_rows))
        if self._sampling_batch is None or not same:
            device = self.tables.tokens.device
            self._sampling_batch = SamplingBatch.build(wanted, self.sampler.vocab_size, device)
            self._sampling_rows = wanted
        return self._sampling_batch

    def _score_prompts(self, batch: Batch, hidden: torch.Tensor) -> Iterator[PromptScores]:
        """Score the rows that want it, in chunks of ``SCORE_CHUNK`` positions."""
        if all(row.score is None for row in batch.other_rows):
            return
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
                    copy = {"target_ids": targets, "logprobs": logprobs, "top_values": values, "top_ids": ids}
                    yield PromptScores(index, HostCopy(copy))
            begin += row.num_tokens
