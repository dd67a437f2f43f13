"""Loading a model: find the files, read the configuration, build the class, stream the weights into it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ...cache.memory import free_memory
from ...errors import ConfigError
from ..build import build_model
from ..config import ModelConfig
from ..interface import Model
from ..quantization.registry import read_scheme
from ..registry import resolve
from ..rope_fields import merge_overrides
from .checkpoint import Checkpoint, Progress, named_tensors
from .dtype import choose_dtype
from .dummy import make_dummy
from .files import read_json
from .folder_kinds import CONFIG, check_folder
from .gguf import open_gguf, read_rope_factors
from .gguf_config import config_from_gguf, generation_config_from_gguf
from .gguf_file import GGUFFile, read_gguf
from .resolve import ModelSource, resolve_model
from .safetensors import open_safetensors
from .torch_bin import open_torch_bin

BeforeWeights = Callable[[ModelConfig, Callable[[], Model] | None], None]
"""What is called before weights are read, with the configuration and what makes the same model in no memory.

That one's weights are on the device ``meta``: it computes nothing, but shows what would be computed. There is
none of a class or a scheme of the user's own, which may launch kernels that take null for an address.
"""


@dataclass(frozen=True)
class LoadedModel:
    """A model with its weights.

    ``generation_config`` is the checkpoint's ``generation_config.json`` (for GGUF: the token ids of its
    metadata), empty if it has none.
    """

    model: Model
    config: ModelConfig
    generation_config: Mapping[str, Any] = field(repr=False)
    source: ModelSource


def load_model(
    model_path: str | Path,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "cpu",
    load_format: str = "auto",
    revision: str | None = None,
    download_dir: str | Path | None = None,
    json_model_override_args: Mapping[str, Any] | str | None = None,
    trust_remote_code: bool = False,  # noqa: ARG001
    batch_invariant: bool = False,
    cpu_offload_gb: float = 0,
    allocate: Callable[[int], torch.Tensor] | None = None,
    progress: Progress | None = None,
    before_weights: BeforeWeights | None = None,
) -> LoadedModel:
    """Load a model and its weights.

    ``model_path``, ``load_format`` (auto, safetensors, pt, gguf, dummy), ``revision`` and
    ``download_dir``: see :func:`~rootlet.models.loader.resolve.resolve_model`; ``dtype``: see
    :func:`~rootlet.models.loader.dtype.choose_dtype`. ``json_model_override_args``, a dict or a JSON
    object, replaces top-level entries of ``config.json`` (rotary settings in either form: see
    :func:`~rootlet.models.rope_fields.merge_overrides`). ``cpu_offload_gb`` GiB (2**30 bytes) of decoder
    layers stay in host memory: see :mod:`~rootlet.models.layers.offload`. ``batch_invariant`` asks for
    kernels whose result for a row depends on that row alone. ``allocate(bytes)`` is where weights are kept,
    uint8 on ``device``; default: each in memory of its own. ``progress(done_bytes, total_bytes)`` is
    called as weights arrive, ``before_weights`` once, when the model is made. ``trust_remote_code`` changes
    nothing here: model code comes from Rootlet and from :func:`rootlet.register_model`, never from a
    checkpoint.

    Raises ConfigError for an impossible option, ModelError for a model that is not supported,
    WeightsError for weights that are missing, damaged or do not fit, MissingDependencyError for a GGUF
    file without the ``gguf`` package.
    """
    overrides = parse_overrides(json_model_override_args)
    source = resolve_model(
        model_path, load_format, revision, download_dir, lambda folder: check_folder(folder, overrides)
    )
    gguf_file = read_gguf(source.path) if source.is_gguf else None
    config = ModelConfig.from_dict(merge_overrides(read_config(source, gguf_file), overrides))
    architecture = resolve(config.architectures)
    checkpoint = open_folder(source)
    stored = None if gguf_file else config.dtype or (checkpoint.dtype if checkpoint else None)
    chosen = choose_dtype(dtype, stored, device)

    def make(where: torch.device | str) -> Model:
        model = build_model(architecture, config, chosen, where)
        if batch_invariant:
            model.use_batch_invariant_kernels()
        return model

    model = make(device)
    if before_weights is not None:
        is_ours = architecture.output is not None and read_scheme(config.raw) is None
        before_weights(config, (lambda: _filled(make("meta"))) if is_ours else None)
    if cpu_offload_gb:
        model.offload_layers(math.ceil(cpu_offload_gb * 2**30))
    if source.format == "dummy":
        checkpoint = _open_dummy(model, chosen, device)
    elif gguf_file is not None:
        checkpoint = open_gguf(gguf_file, config.num_heads, config.num_kv_heads, chosen)
    assert checkpoint is not None  # other formats were opened for the type they store
    if allocate is not None:
        model.place_weights(allocate)
    model.load_weights(named_tensors(checkpoint, progress))
    return LoadedModel(model, config, _read_generation_config(source, gguf_file), source)


def parse_overrides(overrides: Mapping[str, Any] | str | None) -> dict[str, Any]:
    """``json_model_override_args`` as a dict. Raises ConfigError if it is not a JSON object."""
    if overrides is None:
        return {}
    if isinstance(overrides, str):
        try:
            overrides = json.loads(overrides)
        except ValueError as error:
            raise ConfigError(f"json_model_override_args is not JSON: {error}.") from error
    if not isinstance(overrides, Mapping):
        raise ConfigError(f"json_model_override_args must be a JSON object or a dict, got {overrides!r}.")
    return dict(overrides)


def _filled(model: Model) -> Model:
    """The model, on the device ``meta``, with weights there."""
    dtypes, meta = model.weight_dtypes, torch.device("meta")
    model.load_weights(
        (name, torch.empty(shape, dtype=dtypes.get(name, model.dtype), device=meta))
        for name, shape in model.weight_shapes.items()
    )
    return model


def open_folder(source: ModelSource) -> Checkpoint | None:
    """The checkpoint of a folder; None for GGUF and dummy, which are opened when the dtype is known."""
    if source.shards is None:
        return None
    if source.format == "safetensors":
        return open_safetensors(source.shards)
    return open_torch_bin(source.shards)


def _open_dummy(model: Model, dtype: torch.dtype, device: str | torch.device) -> Checkpoint:
    shapes, dtypes = model.weight_shapes, model.weight_dtypes
    needed = sum(math.prod(shape) * dtypes.get(name, dtype).itemsize for name, shape in shapes.items())
    free = free_memory(torch.device(device))
    if free is not None and needed > free:
        raise ConfigError(
            f"load_format='dummy': weights of these sizes take {needed / 2**30:.1f} GiB, and"
            f" {free / 2**30:.1f} GiB are free. Make the model smaller with json_model_override_args."
        )
    return make_dummy(shapes, dtype, dtypes, device=device)


def read_config(source: ModelSource, gguf_file: GGUFFile | None) -> dict[str, Any]:
    """What config.json says, or what the metadata of a GGUF file say in its words."""
    if gguf_file is not None:
        return config_from_gguf(gguf_file, read_rope_factors(gguf_file))
    return read_json(source.path / CONFIG)


def _read_generation_config(source: ModelSource, gguf_file: GGUFFile | None) -> dict[str, Any]:
    if gguf_file is not None:
        return generation_config_from_gguf(gguf_file)
    file = source.path / "generation_config.json"
    return read_json(file) if file.is_file() else {}
