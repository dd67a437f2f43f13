"""The largest steps, run once on padding before the KV pool is made: compiles kernels, measures memory."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import zip_longest
from typing import TYPE_CHECKING

import torch

from ..cache.kv_cache import KVCache
from ..cache.memory import free_memory
from ..cache.slot_tables import PADDING_SLOT, SlotTables
from ..kernels.device import STREAMS, give_back_memory
from ..kernels.gpu.argmax import argmax
from .batch import Batch, BatchRow
from .gpu_inputs import GpuInputs

if TYPE_CHECKING:
    from ..cache.kv_cache import KVCacheSpec
    from ..models.layers.decoder import CausalLM

# What no rehearsal shows: recorded graphs, sampling with filters, fragments between blocks.
_MARGIN = 512 * 2**20


def rehearse(
    model: CausalLM,
    device: torch.device,
    context_length: int,
    page_size: int,
    make_inputs: Callable[[SlotTables, KVCacheSpec], GpuInputs],
    *,
    num_prefill_tokens: int,
    num_decodes: int,
    embeds: bool = False,
    at_once: bool = True,
) -> int:
    """Return the bytes that steps of these sizes need on ``device`` beside the weights and the KV pool.

    Kernels that are not in a cache on disk are compiled on the way, several at once. ``at_once``: two
    steps of one kind, decodes or not, may be planned at the same time.
    """
    kv = KVCache(model.kv_spec(page_size), 2, device)
    tables = SlotTables(2, context_length, page_size, device)
    inputs = make_inputs(tables, kv.spec)
    stream = STREAMS.borrow(device)
    step = partial(_run_step, model, kv, inputs, stream, embeds)
    first = [_prefill(min(num_prefill_tokens, 128)), _decodes(num_decodes), _decodes(1)]
    try:
        for batches in [first] if at_once else _one_of_a_kind(first):
            with ThreadPoolExecutor(len(batches)) as threads:
                for done in [threads.submit(step, batch) for batch in batches]:
                    done.result()
        give_back_memory(device)
        before = free_memory(device)
        reserved = torch.cuda.memory_reserved(device)
        for batch in (_prefill(num_prefill_tokens), _decodes(num_decodes)):
            step(batch)
        grown = torch.cuda.memory_reserved(device) - reserved
    finally:
        STREAMS.give_back(stream, device)
    give_back_memory(device)
    return min(grown, before) + _MARGIN


@torch.inference_mode()
def _run_step(
    model: CausalLM,
    kv: KVCache,
    inputs: GpuInputs,
    stream: torch.cuda.Stream,
    embeds: bool,
    batch: Batch,
) -> None:
    with torch.cuda.stream(stream):
        built = inputs.build(batch)
        hidden = model.forward(built.forward, kv)
        if built.last_tokens is not None:
            hidden = hidden.index_select(0, built.last_tokens)
        if embeds:
            model.compute_embeddings(hidden)
        else:
            inputs.store(built, argmax(model.compute_logits(hidden)))
        stream.synchronize()


def _one_of_a_kind(batches: list[Batch]) -> list[list[Batch]]:
    """The batches in rounds of at most one decode step and one other."""
    decodes = [batch for batch in batches if batch.num_decodes]
    others = [batch for batch in batches if not batch.num_decodes]
    return [[batch for batch in both if batch is not None] for both in zip_longest(others, decodes)]


def _decodes(count: int) -> Batch:
    return Batch((_padding_row(1),) * count, num_decodes=count)


def _prefill(num_tokens: int) -> Batch:
    return Batch((_padding_row(num_tokens),), num_decodes=int(num_tokens == 1))


def _padding_row(num_tokens: int) -> BatchRow:
    """A row on the padding slot: its tokens are 0, its keys and values all go to the padding page."""
    return BatchRow(None, PADDING_SLOT, 0, num_tokens, True, None)
