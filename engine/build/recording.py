"""Which steps of an engine are recorded as CUDA graphs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ...errors import ModelError

if TYPE_CHECKING:
    from ...cache.kv_cache import KVCache
    from ...models.interface import Model
    from ..config import EngineConfig
    from ..steps.runner import Graphs, Inputs
    from .backends import Backend
    from .resolved import Resolved, Sizes

_BUSY = 2e13
"""Tokens times parameters from which on a step keeps the device longer (some 60 ms of an H100) than the host
needs to launch its kernels one by one: no recording makes it faster, and recordings keep their memory."""

_ALWAYS = 512  # tokens of a step that is recorded whatever the model's size


def max_recorded_tokens(config: EngineConfig, sizes: Sizes, backend: Backend, model: Model) -> int:
    """Most tokens of a recorded step, 0 if none is."""
    kinds = model.kv_spec(sizes.page_size).kinds
    if config.disable_cuda_graph or not (backend.can_record and all(kind.can_record for kind in kinds)):
        return 0
    largest = sizes.num_prefill_tokens + sizes.max_running_requests  # prompts, and decodes beside them
    try:
        num_parameters = sum(math.prod(shape) for shape in model.weight_shapes.values())
    except ModelError:  # a class of the user's own that does not tell
        return min(_ALWAYS, largest)
    return min(max(_ALWAYS, int(_BUSY / max(num_parameters, 1))), largest)


def make_graphs(
    config: EngineConfig, resolved: Resolved, model: Model, kv: KVCache, inputs: Inputs
) -> Graphs | None:
    """What records and replays steps; None if none are."""
    if not resolved.max_recorded_tokens:
        return None
    from ..steps.gpu_inputs import GpuInputs  # loads Triton
    from ..steps.graphs.decodes import DecodeGraphs
    from ..steps.graphs.mixed import MixedGraphs
    from ..steps.graphs.recorder import Recorder
    from ..steps.graphs.steps import StepGraphs

    assert isinstance(inputs, GpuInputs)  # of every backend whose steps can be recorded
    recorder, limit = Recorder(), resolved.max_decode_rows
    decodes = DecodeGraphs(model, kv, inputs, recorder, min(config.cuda_graph_max_bs or limit, limit))
    mixed = MixedGraphs(model, kv, inputs, recorder, resolved.max_recorded_tokens, limit)
    return StepGraphs(decodes, mixed, recorder)
