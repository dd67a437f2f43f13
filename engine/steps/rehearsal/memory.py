"""The largest steps, run once on padding before the KV pool is made: measures memory, loads what is left."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch

from ....cache.memory import free_memory
from ....kernels.device import give_back_memory
from ....kernels.gpu.jit import LOADING

if TYPE_CHECKING:
    from .stage import Stage

# What no rehearsal shows: sampling with filters, fragments between blocks.
_MARGIN = 512 * 2**20


def rehearse(stage: Stage, device: torch.device, *, num_recorded_tokens: int, is_compiled: bool) -> int:
    """Return the bytes that the largest steps need on ``device`` beside the weights and the KV pool.

    Recorded steps, of up to ``num_recorded_tokens``, keep their memory beside that of the others. Where not
    all kernels are compiled (``is_compiled``), all kinds of steps run, else those that libraries load
    something for. Nobody else of the process loads kernels meanwhile.
    """
    extent = stage.extent
    with LOADING, contextlib.closing(stage):
        if not is_compiled:
            stage.run_all()
        stage.update()
        stage.draw()
        for layout in (extent.single, extent.short):
            stage.forward(layout)
        stage.finish(1)
        give_back_memory(device)
        before = free_memory(device)
        assert before is not None  # a GPU tells
        reserved = torch.cuda.memory_reserved(device)
        stage.forward(extent.prefill)
        stage.forward(extent.decodes)
        stage.finish(extent.num_decodes)
        grown = torch.cuda.memory_reserved(device) - reserved
    give_back_memory(device)
    grown += grown * num_recorded_tokens // extent.num_prefill_tokens
    return min(grown, before) + _MARGIN
