"""Rows of an embedding table."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .native import element_type, load

_C = load()


def embed(ids: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Return ``table[ids]``: ids ``[T]`` int64, table ``[V, H]``, result ``[T, H]`` in table's dtype.

    Raises IndexError for an id outside ``0..V-1`` (on the CPU).
    """
    if ids.is_meta:  # torch would load a good deal of Python to work out the shape
        return table.new_empty((ids.numel(), table.size(1)))
    if _C is None or element_type(table) is None or ids.dtype is not torch.int64 or not table.is_contiguous():
        return embed_reference(ids, table)
    ids = ids.contiguous()
    count = ids.numel()
    rows, size = table.shape
    out = table.new_empty((count, size))
    row_bytes = size * table.element_size()
    _C.embed(out.data_ptr(), ids.data_ptr(), table.data_ptr(), count, rows, row_bytes)
    return out


def embed_reference(ids: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Compute :func:`embed` in torch."""
    return F.embedding(ids, table)
