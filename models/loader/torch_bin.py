"""Weights in ``torch.save`` files (``pytorch_model*.bin``), read without running pickled code."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from ...errors import WeightsError
from .checkpoint import Checkpoint, StoredTensor
from .files import check_regular
from .shards import Shards


def open_torch_bin(shards: Shards) -> Checkpoint:
    """Open ``torch.save`` files as one checkpoint.

    Files are mapped into memory and unpickled with ``weights_only=True``. Those in the format before torch
    1.6 have to be read whole, one file at a time, so that their shapes are not known beforehand and what is
    wrong with them shows when their turn comes: WeightsError naming file and reason. ``total_bytes`` is the
    sum of the file sizes.
    """
    sizes = {file: check_regular(file, WeightsError) for file in shards.files}
    shapes = _read_shapes(shards)
    tensors = _stream(shards, sizes)
    first = next(tensors, None)
    if first is None:
        raise WeightsError(f"{shards.files[0]}: the file holds no tensors.")
    dtype = first.tensor.dtype if first.tensor.is_floating_point() else None
    return Checkpoint(_put_back(first, tensors), sum(sizes.values()), dtype, shapes)


def _read_shapes(shards: Shards) -> dict[str, tuple[int, ...]] | None:
    """Shapes of all tensors, None if a file would have to be read whole."""
    if not all(_is_zip(file) for file in shards.files):
        return None
    shapes: dict[str, tuple[int, ...]] = {}
    for file in shards.files:
        state = _read_state(file, "meta")
        for name in sorted(shapes.keys() & state.keys()):
            raise WeightsError(f"{file}: the tensor {name!r} is also in another file; keep one of them.")
        shapes |= {name: tuple(tensor.shape) for name, tensor in state.items()}
    return shapes


def _put_back(first: StoredTensor, rest: Iterator[StoredTensor]) -> Iterator[StoredTensor]:
    yield first
    del first
    yield from rest


def _stream(shards: Shards, sizes: dict[Path, int]) -> Iterator[StoredTensor]:
    for file in shards.files:
        state = _read_state(file)
        shards.check_names(file, set(state))
        # tensors may share memory and files hold more than tensors: each counts its share of the file
        total = max(1, sum(tensor.nbytes for tensor in state.values()))
        seen = 0
        for name in list(state):
            tensor = state.pop(name)
            before, seen = seen, seen + tensor.nbytes
            yield StoredTensor(name, tensor, sizes[file] * seen // total - sizes[file] * before // total)


def _read_state(file: Path, device: str = "cpu") -> dict[str, torch.Tensor]:
    try:
        state = torch.load(file, map_location=device, weights_only=True, mmap=_is_zip(file))
    except Exception as error:  # a damaged pickle can make its reader raise almost anything
        raise WeightsError(
            f"{file}: truncated or damaged, or holds more than tensors ({error}). "
            "Download it again, or convert it to safetensors."
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise WeightsError(f"{file}: expected a dict of tensors, got {type(state).__name__}.")
    return dict(state)


def _is_zip(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(4) == b"PK\x03\x04"
