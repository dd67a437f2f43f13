"""Turns a :class:`Batch` into tensors, runs the model and draws tokens. The only scheduler-side torch user.

``launch`` only enqueues work; what it sampled stays on the device, where the next launch finds it in the
slot tables. ``LaunchedStep.wait`` is the one copy to the host. Between the two the scheduler may already
plan and launch the next step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from operator import is_
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch

from ...errors import RootletError
from ...kernels.device import STREAMS
from ...sampling.batch import SamplingBatch
from ...sampling.rows import SamplingRow, all_argmax
from ...sampling.sampler import Sampler
from .batch_layout import lay_out
from .columns import TokenColumn
from .grammar_masks import GrammarMasks
from .hidden_states import CollectedStates
from .host_copy import HostCopy
from .input_embeds import replaced_embeds
from .launched import LaunchedStep, copy_sampled
from .prompt_scores import score_prompts

if TYPE_CHECKING:
    from ...cache.kv_cache import KVCache
    from ...cache.slot_tables import SlotTables
    from ...models.forward import TokenEmbeds
    from ...models.interface import Model
    from ..schedule.batch import Batch
    from .layout import StepLayout
    from .step_input import SampledPlaces, StepInput
    from .threads import StepThreads

T = TypeVar("T")

NO_ERRORS: Mapping[int, RootletError] = MappingProxyType({})


class Inputs(Protocol):
    """Builds a step's tensors and takes its sampled tokens."""

    def build(self, layout: StepLayout, *, all_states: bool = False) -> StepInput:
        """The inputs of one step; with ``all_states`` the forward pass computes those of every token."""

    def store(self, places: SampledPlaces, token_ids: torch.Tensor) -> None:
        """Put sampled ids [S] where the next step finds them."""

    def copy_pages(self, kv: KVCache, copies: Sequence[tuple[int, int]]) -> None:
        """Copy pages (source, destination) in every plane, all as if at once."""


class Graphs(Protocol):
    """Steps recorded once and replayed. Both give None for a step that must be launched kernel by kernel."""

    def replay(self, layout: StepLayout) -> tuple[torch.Tensor, SampledPlaces] | None:
        """Enqueue the layers: hidden states [S, H], and where what is drawn of them goes."""

    def replay_greedy(self, layout: StepLayout) -> torch.Tensor | None:
        """Enqueue a step of decodes to the end: token ids [S] int64, already stored. Looks for no NaN."""

    def record_ahead(self, columns: Sequence[str]) -> bool:
        """Do a part of recording steps before they are needed; False if there is none left."""

    @property
    def nbytes(self) -> int:
        """Bytes of the device that recordings hold."""

    def close(self) -> None:
        """Let the recordings go; nothing may be running of them. Others may be made after that."""


class ModelRunner:
    """Runs batches on one device. Owns the slot tables' contents; knows nothing of queues or text.

    ``columns``: what the model reads per token besides ids and positions. ``embeds``: of the last token of
    each request it computes an embedding instead of drawing the next. ``threads``: those that compute on a
    CPU; default: the caller's, as torch is set.
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
        columns: Sequence[TokenColumn] = (),
        embeds: bool = False,
        threads: StepThreads | None = None,
    ) -> None:
        self.model = model
        self.kv = kv
        self.tables = tables
        self.sampler = sampler
        self._inputs = inputs
        self._graphs = graphs
        self._may_record = True
        self._columns = tuple(columns)
        self._embeds = embeds
        self._threads = threads
        self._device = kv.device
        # A stream of our own: what the host program does on its streams neither waits for us nor we for it.
        self._stream = STREAMS.borrow(kv.device) if kv.device.type == "cuda" else None
        self._masks = GrammarMasks(sampler.vocab_size, kv.device)
        self._sampling_rows: Sequence[SamplingRow] = ()
        self._sampling_batch: SamplingBatch | None = None

    def close(self) -> None:
        """Wait for the device, then let go of the model and everything on it."""
        if self._stream is not None:
            STREAMS.give_back(self._stream, self._device)
        if self._graphs is not None:
            self._graphs.close()
        del self.model, self.kv, self.tables, self.sampler, self._inputs
        self._graphs = self._stream = self._sampling_batch = None
        if self._threads is not None:
            self._threads.close()

    @property
    def step_nbytes(self) -> int:
        """Bytes that are kept from step to step: recordings and work buffers."""
        return self.sampler.nbytes + (0 if self._graphs is None else self._graphs.nbytes)

    def forget_steps(self) -> None:
        """Let those bytes go; steps are launched kernel by kernel until :meth:`record_steps`."""
        if self._stream is not None:
            self._stream.synchronize()
        self._may_record = False
        self._sampling_batch = None
        self.sampler.clear()
        if self._graphs is not None:
            self._graphs.close()

    def record_steps(self) -> None:
        """Record steps again from now on."""
        self._may_record = True

    def launch(self, batch: Batch) -> LaunchedStep:
        """Enqueue one step: table updates, forward pass, prompt scores, sampling.

        With rows that have a constraint sampling is left to :meth:`LaunchedStep.draw`, for their masks need
        the tokens of the step before.
        """
        return self.run(lay_out(batch, self._columns))

    def write_weights(self, write: Callable[[], T], ready: Iterable[torch.cuda.Event]) -> T:
        """Run ``write()``, which changes weights or the KV pool, while no step is under way.

        Its copies are done on return. ``ready``: what must have happened on other streams before.
        """
        if self._stream is None:
            return write()
        with torch.cuda.stream(self._stream):
            for event in ready:
                self._stream.wait_event(event)
            result = write()
            self._stream.synchronize()
        return result

    @torch.inference_mode()
    def record_ahead(self) -> bool:
        """Do a part of recording steps that streams will meet, while no step is under way.

        False if there is nothing left to do, or no memory to do it in: recordings save time, nothing else.
        """
        if self._graphs is None or not self._may_record:
            return False
        with self._placed():
            try:
                return self._graphs.record_ahead([column.name for column in self._columns])
            except torch.OutOfMemoryError:
                return False

    @torch.inference_mode()
    def run(self, layout: StepLayout) -> LaunchedStep:
        """Enqueue the step of a layout; see :meth:`launch`."""
        with self._placed():
            self._apply_updates(layout)
            embeds = replaced_embeds(layout.inserts, self._device, self.model.dtype)
            return (self._replay(layout) if embeds is None else None) or self._compute(layout, embeds)

    def _replay(self, layout: StepLayout) -> LaunchedStep | None:
        """The step from a recording, if there is one."""
        if self._graphs is None or not self._may_record:
            return None
        # A greedy recording looks for no NaN, so it takes no first tokens: broken models fail there.
        plain = layout.only_decodes and not (layout.pieces or layout.bound)
        if plain and all_argmax(layout.sampling_rows):
            token_ids = self._graphs.replay_greedy(layout)
            if token_ids is not None:
                copy = HostCopy({"token_ids": token_ids})
                return LaunchedStep(layout.sampling_rows, sampled=copy)
        replayed = self._graphs.replay(layout)
        if replayed is None:
            return None
        hidden, places = replayed
        states = CollectedStates.begin(layout.pieces, hidden)  # of steps that draw after each token: T is S
        launched = LaunchedStep(layout.sampling_rows, self.sampler.vocab_size, states=states)
        return self._drawing(launched, layout, hidden, places)

    def _compute(self, layout: StepLayout, embeds: TokenEmbeds | None) -> LaunchedStep:
        """The step kernel by kernel; ``embeds``: vectors in place of some tokens."""
        step = self._inputs.build(layout, all_states=bool(layout.scores or layout.pieces))
        forward = step.forward if embeds is None else replace(step.forward, embeds=embeds)
        hidden = self.model.forward(forward, self.kv)
        scores = tuple(score_prompts(layout.scores, hidden, self.tables.tokens, self.model.compute_logits))
        states = CollectedStates.begin(layout.pieces, hidden)
        hidden = step.sampled.states(hidden)
        launched = LaunchedStep(layout.sampling_rows, self.sampler.vocab_size, scores=scores, states=states)
        if self._embeds:
            launched.sampled = self._embed(hidden)
            return launched
        return self._drawing(launched, layout, hidden, step.sampled)

    def _drawing(
        self, launched: LaunchedStep, layout: StepLayout, hidden: torch.Tensor, places: SampledPlaces
    ) -> LaunchedStep:
        """Draw a token after each of ``hidden`` [S, H]: now, or when the matchers are up to date."""
        if layout.bound:
            launched.pending = partial(self._draw_masked, layout, hidden, places)
        elif len(hidden):
            launched.sampled = self._sample(layout, hidden, places)
        return launched

    @torch.inference_mode()
    def _draw_masked(self, layout: StepLayout, hidden: torch.Tensor, places: SampledPlaces) -> HostCopy:
        with self._placed():
            masks, errors = self._masks.fill(layout.bound, layout.num_samples)
            return self._sample(layout, hidden, places, masks, errors)

    def _placed(self) -> contextlib.AbstractContextManager:
        """Compute on the engine's own stream, or with its own threads."""
        if self._stream is not None:
            return torch.cuda.stream(self._stream)
        return contextlib.nullcontext() if self._threads is None else self._threads.step()

    def _apply_updates(self, layout: StepLayout) -> None:
        if layout.token_writes or layout.page_writes:
            self.tables.write(layout.token_writes, layout.page_writes)
        if layout.page_copies:
            self._inputs.copy_pages(self.kv, layout.page_copies)

    def _sample(
        self,
        layout: StepLayout,
        hidden: torch.Tensor,
        places: SampledPlaces,
        masks: torch.Tensor | None = None,
        errors: Mapping[int, RootletError] = NO_ERRORS,
    ) -> HostCopy:
        """Draw a token after each of ``hidden`` [S, H], at least one."""
        logits = self.model.compute_logits(hidden)
        sampled = self.sampler.sample(
            logits, self._sampling(layout), places.positions, self.tables.tokens, masks
        )
        self._inputs.store(places, sampled.token_ids)
        return copy_sampled(sampled, errors)

    def _embed(self, hidden: torch.Tensor) -> HostCopy | None:
        """Embeddings of ``hidden`` [S, H] instead of tokens; a request's only token is nobody's."""
        if not len(hidden):
            return None
        token_ids = torch.zeros(len(hidden), dtype=torch.int64, device="cpu")
        return HostCopy({"token_ids": token_ids, "embeddings": self.model.compute_embeddings(hidden)})

    def _sampling(self, layout: StepLayout) -> SamplingBatch:
        """The sampling tensors of these rows, rebuilt only when the rows change."""
        wanted, known = layout.sampling_rows, self._sampling_rows
        same = len(wanted) == len(known) and all(map(is_, wanted, known))
        if self._sampling_batch is None or not same:
            device = self.tables.tokens.device
            self._sampling_batch = SamplingBatch.build(wanted, self.sampler.vocab_size, device)
            self._sampling_rows = wanted
        return self._sampling_batch
