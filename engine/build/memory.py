"""How large the KV pool is: what is free, less what the largest steps need beside it."""

from __future__ import annotations

import torch

from ...cache.kv_cache import plan_num_pages
from ...cache.kv_spec import KVCacheSpec
from ...models.interface import Model
from ..config import EngineConfig
from ..steps.columns import checked
from .backends import Backend, announced
from .resolved import Sizes


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
    embeds: bool,
) -> int:
    """Bytes that the largest steps need beside weights and KV pool; known for the GPU's own kernels only.

    Runs the model on steps of padding.
    """
    if backend.rehearsed is None:
        return 0
    from ..steps.rehearsal import rehearse  # loads Triton

    context = sizes.context_length
    model.set_context_length(context)
    with announced(backend):
        return rehearse(
            model,
            device,
            context,
            sizes.page_size,
            backend.rehearsal_inputs,
            num_prefill_tokens=sizes.num_prefill_tokens,
            num_recorded_tokens=max_recorded_tokens,
            num_decodes=sizes.max_running_requests,
            columns=[column.name for column in checked(model.token_columns)],
            in_turn=backend.in_turn,
            embeds=embeds,
        )
