"""How large the KV pool is: what is free, less what the largest steps need beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from ...cache.kv_cache import plan_num_pages
from ...cache.kv_spec import KVCacheSpec
from ...models.interface import Model
from ..config import EngineConfig
from ..steps.columns import checked
from .backends import Backend, announced
from .resolved import Sizes

if TYPE_CHECKING:
    from ..steps.rehearsal.stage import Stage


def plan_pool(
    config: EngineConfig, sizes: Sizes, spec: KVCacheSpec, device: torch.device, reserve: int
) -> int:
    """Pages of the KV pool, the padding page included; ``reserve`` bytes are left to the steps.

    Raises ConfigError where not even a page is left.
    """
    return plan_num_pages(
        spec,
        device,
        max_total_tokens=config.max_total_tokens,
        kv_cache_bytes=config.kv_cache_bytes,
        mem_fraction=sizes.mem_fraction,
        # more than every slot full of context is never used
        cap_tokens=sizes.max_running_requests * (sizes.context_length + sizes.page_size),
        reserve=reserve,
    )


def measure_steps(
    sizes: Sizes,
    backend: Backend,
    model: Model,
    device: torch.device,
    max_recorded_tokens: int,
    *,
    vocab_size: int,
    embeds: bool,
    is_compiled: Callable[[], bool],
) -> int:
    """Bytes that the largest steps need beside weights and KV pool; known for the GPU's own kernels only.

    Runs the model on steps of padding, when ``is_compiled`` returns: whether all kernels are compiled.
    """
    if not backend.is_rehearsed:
        return 0
    from ..steps.rehearsal.memory import rehearse  # loads Triton

    with announced(backend):
        compiled = is_compiled()
        stage = make_stage(sizes, backend, model, device, vocab_size=vocab_size, embeds=embeds)
        return rehearse(stage, device, num_recorded_tokens=max_recorded_tokens, is_compiled=compiled)


def make_stage(
    sizes: Sizes, backend: Backend, model: Model, device: torch.device, *, vocab_size: int, embeds: bool
) -> Stage:
    """Where steps of padding run: on the device of the model, which may be ``meta``."""
    from ..steps.rehearsal.layouts import Extent  # loads Triton
    from ..steps.rehearsal.stage import Stage

    extent = Extent(
        num_decodes=sizes.max_running_requests,
        num_prefill_tokens=sizes.num_prefill_tokens,
        context_length=sizes.context_length,
        page_size=sizes.page_size,
        columns=tuple(column.name for column in checked(model.token_columns)),
    )
    model.set_context_length(extent.context_length)
    return Stage(model, device, extent, backend.make_inputs, vocab_size=vocab_size, embeds=embeds)
