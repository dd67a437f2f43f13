"""Buckets: many tensors in one buffer of bytes, as trainers send them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from ...errors import WeightsError, short
from .source import read_spec


def read_bucket(buffer: torch.Tensor, entries: Iterable[Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors that lie in ``buffer`` [bytes] uint8, as views of it.

    ``entries``: for each ``{"name", "dtype", "shape", "offset"}``, ``offset`` in bytes. Raises WeightsError
    for an entry that lies outside or does not begin where its dtype may.
    """
    if not isinstance(buffer, torch.Tensor) or buffer.dtype is not torch.uint8 or buffer.dim() != 1:
        raise WeightsError(f"A bucket is one tensor [bytes] of uint8, got {_describe(buffer)}.")
    for entry in entries:
        if not isinstance(entry, Mapping) or not {"name", "dtype", "shape", "offset"} <= entry.keys():
            raise WeightsError(
                f"An entry of a bucket has 'name', 'dtype', 'shape' and 'offset', got {short(entry)}."
            )
        name, offset = entry["name"], entry["offset"]
        shape, dtype = read_spec(name, (entry["dtype"], entry["shape"]))
        if dtype is None or not isinstance(offset, int):
            raise WeightsError(f"{short(name)} needs a dtype and an offset in bytes, got {short(entry)}.")
        end = offset + math.prod(shape) * dtype.itemsize
        if offset < 0 or end > len(buffer) or (buffer.storage_offset() + offset) % dtype.itemsize:
            raise WeightsError(
                f"{short(name)} is at bytes {offset} to {end} of a bucket of {len(buffer)}; it must lie"
                f" inside, and begin at a multiple of {dtype.itemsize}."
            )
        yield name, buffer[offset:end].view(dtype).view(shape)


def _describe(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} {list(value.shape)}"
    return type(value).__name__
