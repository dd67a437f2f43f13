"""Where new weights come from: one of many things that are iterated as (name, tensor)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ...errors import WeightsError, short
from ...models.config import ModelConfig
from ...models.layers.weight_update import TensorSpec
from ...models.loader.reload import open_weights

Named = tuple[str, torch.Tensor]


@dataclass(frozen=True)
class Source:
    """New weights.

    Attributes:
        tensors: to be walked once. Of those that are not ``held`` each is good until the next is asked for.
        held: all of them, if they are there and stay: nothing can fail between the first and the last.
        manifest: all names that will come, if they are known beforehand.
        is_checkpoint: names are those of a file, perhaps of a bare or wrapped model.
    """

    tensors: Iterator[Named]
    held: dict[str, torch.Tensor] | None = None
    manifest: Mapping[str, TensorSpec] | None = None
    is_checkpoint: bool = False


def open_path(
    path: str | os.PathLike[str],
    load_format: str,
    expect: Mapping[str, Any] | None,
    config: ModelConfig,
    dtype: torch.dtype,
) -> Source:
    """The checkpoint at ``path``, of the model that ``config`` is of; its floats are wanted in ``dtype``."""
    checkpoint = open_weights(path, config, dtype, load_format)
    manifest = _read_expected(expect)
    if manifest is None and checkpoint.shapes is not None:
        manifest = {name: TensorSpec(tuple(shape)) for name, shape in checkpoint.shapes.items()}
    tensors = ((one.name, one.tensor) for one in checkpoint.tensors)
    return Source(tensors, manifest=manifest, is_checkpoint=True)


def open_source(source: Any, expect: Mapping[str, Any] | None) -> Source:
    """What ``update_weights`` was given, if not a path, as a :class:`Source`; ``expect`` as there.

    A mapping's values are all read here, a module's are its ``state_dict()``. Raises WeightsError for
    anything that gives no tensors.
    """
    manifest = _read_expected(expect)
    if isinstance(source, torch.nn.Module):
        source = source.state_dict()
    if isinstance(source, Mapping):
        tensors = dict(source.items())
        return Source(iter(tensors.items()), tensors, manifest)
    if isinstance(source, (list, tuple)):
        return _held(source, manifest)
    metadata = getattr(source, "metadata", None)
    if callable(metadata):
        manifest = manifest or _read_metadata(metadata())
    if not isinstance(source, Iterable):
        raise WeightsError(
            "Weights must be a mapping of names to tensors, a torch module, the path of a checkpoint, pairs"
            f" of name and tensor, or an object with metadata() and __iter__(); got {type(source).__name__}."
        )
    return Source(map(_pair, iter(source)), manifest=manifest)


def read_spec(name: str, spec: Any) -> TensorSpec:
    """``(dtype, shape)`` of a manifest, the dtype perhaps by name or None. Raises WeightsError."""
    try:
        dtype, shape = spec
        return TensorSpec(tuple(int(size) for size in shape), read_dtype(dtype))
    except (TypeError, ValueError) as error:
        raise WeightsError(
            f"What is expected of {short(name)} must be a dtype and a shape, got {short(spec)}."
        ) from error


def read_dtype(dtype: Any) -> torch.dtype | None:
    """A torch dtype, perhaps by its name ("bfloat16", "torch.bfloat16"). Raises ValueError."""
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    found = getattr(torch, str(dtype).removeprefix("torch."), None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"{dtype!r} is no dtype of torch.")
    return found


def _read_expected(expect: Mapping[str, Any] | None) -> dict[str, TensorSpec] | None:
    if expect is None:
        return None
    if not isinstance(expect, Mapping):
        raise WeightsError(f"expect must map names to (dtype, shape), got {short(expect)}.")
    return {name: read_spec(name, spec) for name, spec in expect.items()}


def _held(pairs: Iterable[Any], manifest: Mapping[str, TensorSpec] | None) -> Source:
    tensors: dict[str, torch.Tensor] = {}
    twice = []
    for name, tensor in map(_pair, pairs):
        if name in tensors:
            twice.append(name)
        tensors[name] = tensor
    if twice:
        raise WeightsError(f"The update has these names twice; nothing was changed: {', '.join(twice[:10])}.")
    return Source(iter(tensors.items()), tensors, manifest)


def _pair(item: Any) -> Named:
    try:
        name, tensor = item
    except (TypeError, ValueError):
        raise WeightsError(f"Weights come as pairs of name and tensor, got {short(item)}.") from None
    return name, tensor


def _read_metadata(metadata: Any) -> dict[str, TensorSpec]:
    """Of ``{name: (dtype, shape)}``, or of objects or triples of name, dtype and shape."""
    if isinstance(metadata, Mapping):
        return {name: read_spec(name, spec) for name, spec in metadata.items()}
    specs = {}
    for entry in metadata:
        name, dtype, shape = (
            (entry.name, entry.dtype, entry.shape) if hasattr(entry, "shape") else tuple(entry)
        )
        specs[name] = read_spec(name, (dtype, shape))
    return specs
