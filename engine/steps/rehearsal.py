"""The largest steps, run once on padding before the KV pool is made: compiles kernels, measures memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import torch

from ...cache.kv_cache import KVCache
from ...cache.memory import free_memory
from ...cache.slot_tables import SlotTables
from ...kernels.device import STREAMS, give_back_memory
from ...kernels.gpu.argmax import argmax
from .layout import StepLayout

if TYPE_CHECKING:
    from ...cache.kv_spec import KVCacheSpec
    from ...models.interface import Model
    from .runner import Inputs

# What no rehearsal shows: sampling with filters, fragments between blocks.
_MARGIN = 512 * 2**20


def rehearse(
    model: Model,
    device: torch.device,
    context_length: int,
    page_size: int,
    make_inputs: Callable[[SlotTables, KVCacheSpec], Inputs],
    *,
    num_prefill_tokens: int,
    num_recorded_tokens: int,
    num_decodes: int,
    columns: Sequence[str] = (),
    in_turn: bool = False,
    embeds: bool = False,
) -> int:
    """Return the bytes that steps of these sizes need on ``device`` beside the weights and the KV pool.

    Recorded steps, of up to ``num_recorded_tokens``, keep their memory beside that of the others.
    ``columns``: names of those that the model reads per token. Kernels that are not in Triton's cache on
    disk are compiled on the way, several at once unless steps must run ``in_turn``: where weights or plans
    are held once for the step under way.
    """
    stage = _Stage(model, device, context_length, page_size, make_inputs, embeds)
    single = StepLayout.padding(1, 1, columns)
    decodes = StepLayout.padding(num_decodes, 1, columns)
    short = StepLayout.padding(1, min(num_prefill_tokens, 128), columns)
    prefill = StepLayout.padding(1, num_prefill_tokens, columns)
    # Compiling is what takes long, and loading cuDNN: each thread begins with kernels of its own.
    tasks = [
        *(partial(stage.forward, layout) for layout in (single, decodes, short, prefill)),
        *(partial(stage.finish, layout) for layout in (single, decodes)),
    ]
    try:
        with ThreadPoolExecutor(1 if in_turn else len(tasks)) as threads:
            for done in [threads.submit(task) for task in tasks]:
                done.result()
        give_back_memory(device)
        before = free_memory(device)
        assert before is not None  # a GPU tells
        reserved = torch.cuda.memory_reserved(device)
        stage.forward(prefill)
        stage.finish(single)
        stage.forward(decodes)
        stage.finish(decodes)
        grown = torch.cuda.memory_reserved(device) - reserved
    finally:
        stage.close()
    give_back_memory(device)
    grown += grown * num_recorded_tokens // num_prefill_tokens
    return min(grown, before) + _MARGIN


class _Stage:
    """Runs the two halves of a step, each by itself, on padding rows. Threads may share it."""

    def __init__(
        self,
        model: Model,
        device: torch.device,
        context_length: int,
        page_size: int,
        make_inputs: Callable[[SlotTables, KVCacheSpec], Inputs],
        embeds: bool,
    ) -> None:
        self._model = model
        self._device = device
        self._embeds = embeds
        self._kv = KVCache(model.kv_spec(page_size), 2, device)
        self._inputs = make_inputs(SlotTables(2, context_length, page_size, device), self._kv.spec)
        self._stream = STREAMS.borrow(device)

    @torch.inference_mode()
    def forward(self, layout: StepLayout) -> None:
        """The layers."""
        with torch.cuda.stream(self._stream):
            # states of every token, as prompt scores ask for: the larger step
            self._model.forward(self._inputs.build(layout, all_states=True).forward, self._kv)
            self._stream.synchronize()

    @torch.inference_mode()
    def finish(self, decodes: StepLayout) -> None:
        """What follows the last layer, for rows that each draw a token."""
        num_rows = decodes.num_rows
        with torch.cuda.stream(self._stream):
            shape = (num_rows, self._model.hidden_size)
            hidden = torch.zeros(shape, dtype=self._model.dtype, device=self._device)
            if self._embeds:
                self._model.compute_embeddings(hidden)
            else:
                step = self._inputs.build(decodes)
                self._inputs.store(step.sampled, argmax(self._model.compute_logits(hidden)))
            self._stream.synchronize()

    def close(self) -> None:
        """Give the stream back; the memory goes with the object."""
        STREAMS.give_back(self._stream, self._device)
