"""Who computes attention: what the user may ask for where, and how each backend's inputs are built."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from ...errors import ConfigError
from ...kernels.native import load as native_kernels
from ..config import EngineConfig
from ..replies.progress_bar import ProgressBar
from ..steps.torch_inputs import TorchInputs

if TYPE_CHECKING:
    from ...cache.kv_cache import KVCacheSpec
    from ...cache.slot_tables import SlotTables
    from ...models.loader import LoadedModel
    from ..steps.gpu_inputs import GpuInputs
    from ..steps.runner import Inputs

logger = logging.getLogger("rootlet.engine")


@dataclass(frozen=True)
class Backend:
    """One engine's attention backend. ``make_inputs`` builds what turns batches into tensors."""

    name: str
    make_inputs: Callable[[SlotTables, KVCacheSpec], Inputs]
    can_record: bool = False  # decode steps as CUDA graphs
    rehearsal_inputs: Callable[[SlotTables, KVCacheSpec], GpuInputs] | None = None  # of rows without requests
    in_turn: bool = False  # what is planned holds for one step at a time
    preparing: str | None = None  # what to tell somebody who waits for the first steps


def choose_backend(config: EngineConfig, device: torch.device) -> str:
    """The name of the backend, before anything is loaded. Raises ConfigError for what cannot be had."""
    on_gpu = device.type == "cuda"
    name = config.attention_backend
    if name in ("triton", "flashinfer") and not on_gpu:
        raise ConfigError(f"attention_backend={name!r} needs a CUDA GPU; use 'auto' or 'torch' on a CPU.")
    if on_gpu:  # before the weights are read in vain
        from ...kernels.gpu.release import check_triton

        check_triton()
    if name == "flashinfer":
        from ...kernels.gpu.flashinfer import import_library

        import_library()
    if name == "auto":
        name = "triton" if on_gpu else "torch"
    if config.deterministic:
        _check_deterministic(config, name, on_gpu)
    return name


def make_backend(name: str, config: EngineConfig, loaded: LoadedModel, device: torch.device) -> Backend:
    """The backend of that name for a model. Raises ConfigError for a model it does not know."""
    if name == "torch":
        return Backend(name, lambda tables, spec: TorchInputs(tables, spec.page_size))
    if name == "flashinfer":
        return _flashinfer(loaded, device)
    from ..steps.gpu_inputs import TritonInputs  # loads Triton

    make_inputs = partial(
        TritonInputs,
        num_q_heads=loaded.config.num_heads,
        share_prefixes=not config.disable_shared_prefix_attention,
        deterministic=config.deterministic,
    )
    in_turn = config.cpu_offload_gb > 0  # steps share the memory that weights pass through
    alone = partial(make_inputs, share_prefixes=False)
    return Backend(name, make_inputs, can_record=True, rehearsal_inputs=alone, in_turn=in_turn)


def announced(backend: Backend) -> contextlib.AbstractContextManager[Any]:
    """Tells who waits what is being prepared, if that may take long."""
    if backend.preparing is None:
        return contextlib.nullcontext()
    logger.info("Preparing %s", backend.preparing)
    return ProgressBar(desc=f"Preparing {backend.preparing}", bar_format="{desc}", leave=False, disable=None)


def _flashinfer(loaded: LoadedModel, device: torch.device) -> Backend:
    from ...kernels.gpu.flashinfer import Wrappers
    from ..steps.flashinfer_inputs import FlashInferInputs

    spec = loaded.model.kv_spec(1)  # pages of any size
    wrappers = Wrappers(loaded.config.num_heads, spec.num_kv_heads, spec.head_dim, spec.dtype, device)
    make_inputs = partial(FlashInferInputs, planner=wrappers)
    return Backend(
        "flashinfer",
        make_inputs,
        rehearsal_inputs=make_inputs,
        in_turn=True,
        preparing="flashinfer's kernels; those not in its cache on disk are compiled, once: minutes.",
    )


def _check_deterministic(config: EngineConfig, name: str, on_gpu: bool) -> None:
    """Refuse what would run kernels of others, which promise nothing."""
    if on_gpu:
        if name != "triton":
            raise ConfigError(f"deterministic=True needs attention_backend='triton' or 'auto', got {name!r}.")
        return
    if native_kernels() is None:
        raise ConfigError(
            "deterministic=True needs the C kernels, which were not built."
            " Install a C compiler and Rootlet again."
        )
    if config.dtype in ("half", "float16"):
        raise ConfigError(
            f"deterministic=True on a CPU takes bfloat16 or float32, got dtype={config.dtype!r}."
        )
