"""Who computes attention: what the user may ask for where, and who builds and plans its steps."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch

from ...errors import ConfigError
from ...kernels.native import load as native_kernels
from ..config import EngineConfig
from ..replies.progress_bar import ProgressBar
from ..steps.planners import MakePlanner, PagedPlanner, make_planners
from ..steps.torch_inputs import TorchInputs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...cache.kv_kind import KVPlanner
    from ...cache.kv_spec import KVCacheSpec, KVGroup
    from ...cache.slot_tables import SlotTables
    from ...models.interface import Model
    from ..steps.runner import Inputs

logger = logging.getLogger("rootlet.engine")


class MakeInputs(Protocol):
    """Makes what turns layouts into tensors, with a planner per KV group: a class of engine/steps."""

    def __call__(self, tables: SlotTables, page_size: int, planners: Sequence[KVPlanner]) -> Inputs:
        """Of one engine's slot tables."""


@dataclass(frozen=True)
class Backend:
    """One engine's attention backend."""

    name: str
    inputs: MakeInputs
    planner: MakePlanner  # of groups without a kind of their own
    can_record: bool = False  # decode steps as CUDA graphs
    is_rehearsed: bool = False  # steps of padding run before there is a KV pool
    compiles_ahead: bool = False  # its kernels are known from tensors without memory
    preparing: str | None = None  # what to tell somebody who waits for the first steps

    def make_inputs(self, tables: SlotTables, spec: KVCacheSpec) -> Inputs:
        """What builds the steps of an engine."""
        return self.inputs(tables, spec.page_size, make_planners(spec, tables.pages, self.planner))


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


def make_backend(name: str, config: EngineConfig, model: Model, device: torch.device) -> Backend:
    """The backend of that name for a model. Raises ConfigError for a model it does not know.

    So it does for options that a kind of the model's own does not take.
    """
    spec = model.kv_spec(1)  # pages of any size
    _check_kinds(config, spec)
    if name == "torch":
        return Backend(name, TorchInputs, lambda pages, _, page_size: PagedPlanner(pages, page_size))
    if name == "flashinfer":
        return _flashinfer(spec, device)
    from ..steps.gpu_inputs import GpuInputs  # loads Triton
    from ..steps.triton_planner import TritonPlanner

    return Backend(
        name,
        GpuInputs,
        partial(
            TritonPlanner,
            share_prefixes=not config.disable_shared_prefix_attention,
            deterministic=config.deterministic,
        ),
        can_record=True,
        is_rehearsed=True,
        compiles_ahead=True,
    )


def announced(backend: Backend) -> contextlib.AbstractContextManager[Any]:
    """Tells who waits what is being prepared, if that may take long."""
    if backend.preparing is None:
        return contextlib.nullcontext()
    logger.info("Preparing %s", backend.preparing)
    return ProgressBar(desc=f"Preparing {backend.preparing}", bar_format="{desc}", leave=False, disable=None)


def _flashinfer(spec: KVCacheSpec, device: torch.device) -> Backend:
    if len(spec.groups) > 1 or spec.kinds:
        raise ConfigError(
            "attention_backend='flashinfer' plans one group of layers, that keep 'k' and 'v'. "
            + " ".join(f"{group} keeps {_planes(group)}." for group in spec.groups)
            + " Use attention_backend='auto'."
        )
    from ...kernels.gpu.flashinfer import Wrappers
    from ..steps.flashinfer_planner import FlashInferPlanner
    from ..steps.gpu_inputs import GpuInputs

    [group] = spec.groups
    _, (num_kv_heads, head_dim), dtype = group.plane("k")
    wrappers = Wrappers(group.num_q_heads, num_kv_heads, head_dim, dtype, device)

    def planner(pages: torch.Tensor, _: KVGroup, page_size: int) -> KVPlanner:
        return FlashInferPlanner(pages, page_size, wrappers)

    return Backend(
        "flashinfer",
        GpuInputs,
        planner,
        is_rehearsed=True,
        preparing="flashinfer's kernels; those not in its cache on disk are compiled, once: minutes.",
    )


def _planes(group: KVGroup) -> str:
    return " and ".join(f"{plane.name!r} {list(plane.shape)}" for plane in group.planes)


def _check_kinds(config: EngineConfig, spec: KVCacheSpec) -> None:
    """Refuse what a kind of the model's own does not promise."""
    for kind in spec.kinds:
        if config.deterministic and not kind.is_batch_invariant:
            raise ConfigError(
                "deterministic=True needs attention that is the same to the bit in any batch, and this"
                f" model's kind {kind.name!r} does not promise that. Leave the option out."
            )
        if config.cuda_graph_max_bs is not None and not kind.can_record:
            raise ConfigError(
                f"cuda_graph_max_bs={config.cuda_graph_max_bs} does not go with this model: steps with"
                f" attention of its kind {kind.name!r} cannot be recorded. Leave the option out."
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
