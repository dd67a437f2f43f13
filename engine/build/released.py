"""How an engine's memory can be given to somebody else for a while: by what means, on which device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ...cache.memory import Allocate, zeros
from ...errors import ModelError
from ...kernels.arena import Arena
from ...kernels.device import give_back_memory
from ...kernels.host_pages import GIVES_PAGES_BACK, HostPages
from ..memory import EngineMemory, StepMemory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor

    from ...cache.kv_cache import KVCache
    from ...cache.slot_tables import SlotTables
    from ...models.interface import Model
    from ..config import EngineConfig
    from ..memory import Releasable, Tag
    from ..steps.runner import ModelRunner

_NEEDS_OPTION = (
    "On a GPU memory can be released only by an engine that was built with enable_memory_saver=True: weights"
    " and KV cache then lie where the driver can take it away and put it back."
)
_NEEDS_LINUX = "On a CPU memory is given back by madvise(MADV_DONTNEED) of Linux, and this system is another."


@dataclass(frozen=True)
class Places:
    """Where weights and KV cache are to be, so that they can leave; None where any memory will do."""

    weights: Arena | None = None
    kv_cache: Arena | None = None

    @property
    def allocate_weights(self) -> Callable[[int], Tensor] | None:
        """What a loader is given."""
        return None if self.weights is None else self.weights.bytes

    @property
    def allocate_kv_cache(self) -> Allocate:
        """What the KV pool and the slot tables are given."""
        return zeros if self.kv_cache is None else self.kv_cache.zeros


def make_places(config: EngineConfig, device: torch.device) -> Places:
    """Those that the options ask for. Raises ConfigError without CUDA's driver."""
    if device.type != "cuda" or not config.enable_memory_saver:
        return Places()
    from ...kernels.cuda_driver import CudaDriver

    return Places(Arena(CudaDriver(device)), Arena(CudaDriver(device), zeroed=True))


def make_memory(
    places: Places, model: Model, kv: KVCache, tables: SlotTables, runner: ModelRunner
) -> EngineMemory:
    """What releases and resumes the memory of these; on the CPU page by page, wherever it is."""
    device = kv.device
    steps = StepMemory(runner, lambda: _give_back(device))
    weights: Releasable | None = places.weights
    cache: Releasable | None = places.kv_cache
    if weights is None or cache is None:
        if device.type == "cuda" or not GIVES_PAGES_BACK:
            return EngineMemory({}, impossible=_NEEDS_OPTION if device.type == "cuda" else _NEEDS_LINUX)
        weights = HostPages(model.weight_tensors)
        cache = HostPages(lambda: (*kv.data, tables.tokens, tables.pages))
    parts: dict[Tag, Releasable] = {"weights": weights, "kv_cache": cache, "cuda_graph": steps}
    return EngineMemory(parts, lambda: _names(model))


def _names(model: Model) -> Iterable[str]:
    """Of all weights; of a class that does not tell, one that only a whole update brings."""
    try:
        return model.weight_shapes
    except ModelError:
        return ["(all weights)"]


def _give_back(device: torch.device) -> int:
    """Bytes that torch's allocator has returned to the system."""
    if device.type != "cuda":
        return 0
    before = torch.cuda.memory_reserved(device)
    give_back_memory(device)
    return before - torch.cuda.memory_reserved(device)
