"""The largest steps, run once on padding before the KV pool is made: compiles kernels, measures memory."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import torch

from ..cache.kv_cache import KVCache
from ..cache.memory import free_memory
from ..cache.slot_tables import PADDING_SLOT, SlotTables
from ..kernels.device import STREAMS, give_back_memory
from ..kernels.gpu.argmax import argmax
from .batch import Batch, BatchRow
from .gpu_inputs import TritonInputs

if TYPE_CHECKING:
    from ..models.layers.decoder import CausalLM

# What no rehearsal shows: recorded graphs, sampling with filters, fragments between blocks.
_MARGIN = 512 * 2**20


def rehearse(
    model: CausalLM,
    device: torch.device,
    context_length: int,
    page_size: int,
    *,
    num_prefill_tokens: int,
    num_decodes: int,
    embeds: bool = False,
) -> int:
    """Return the bytes that steps of these sizes need on ``device`` beside the weights and the KV pool.

    Kernels that are not in Triton's cache on disk are compiled on the way, several at once.
    """
    kv = KVCache(model.kv_spec(page_size), 2, device)
    tables = SlotTables(2, context_length, page_size, device)
    inputs = TritonInputs(tables, kv.spec, model.config.num_heads, share_prefixes=False)
    stream = STREAMS.borrow(device)
    step = partial(_run_step, model, kv, inputs, stream, embeds)
    small = min(num_prefill_tokens, 128)
    first = [_decodes(1), _decodes(num_decodes), _prefill(small)]
    with ThreadPoolExecutor(len(first)) as threads:
        for done in [threads.submit(step, batch) for batch in first]:
            done.result()
    give_back_memory(device)
    before = free_memory(device)
    reserved = torch.cuda.memory_reserved(device)
    for batch in (_prefill(num_prefill_tokens), _decodes(num_decodes)):
        step(batch)
    grown = torch.cuda.memory_reserved(device) - reserved
    STREAMS.give_back(stream, device)
    give_back_memory(device)
    return min(grown, before) + _MARGIN


@torch.inference_mode()
def _run_step(
    model: CausalLM,
    kv: KVCache,
    inputs: TritonInputs,
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


def _decodes(count: int) -> Batch:
    return Batch((_padding_row(1),) * count, num_decodes=count)


def _prefill(num_tokens: int) -> Batch:
    return Batch((_padding_row(num_tokens),), num_decodes=int(num_tokens == 1))


def _padding_row(num_tokens: int) -> BatchRow:
    """A row on the padding slot: its tokens are 0, its keys and values all go to the padding page."""
    return BatchRow(None, PADDING_SLOT, 0, num_tokens, True, None)
