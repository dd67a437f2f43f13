"""What every checkpoint reader hands over: a one-pass stream of named tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch

Progress = Callable[[int, int], None]
"""Called as ``progress(done_bytes, total_bytes)`` while weights load."""


class StoredTensor(NamedTuple):
    """A tensor of a checkpoint: its Hugging Face name, its values, its bytes on disk."""

    name: str
    tensor: torch.Tensor
    num_bytes: int


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint.

    ``tensors`` can be walked once and reads each tensor when it is asked for; it keeps no earlier one.
    ``total_bytes`` is the sum of ``num_bytes`` over all of them. ``dtype`` is the type of its first floating
    tensor, for models whose configuration names none; None if the format does not tell. ``shapes`` are those
    of all tensors by name, known before any is read; None if the format does not tell.
    """

    tensors: Iterator[StoredTensor]
    total_bytes: int
    dtype: torch.dtype | None = None
    shapes: Mapping[str, tuple[int, ...]] | None = None


def named_tensors(checkpoint: Checkpoint, progress: Progress | None = None) -> NamedTensors:
    """The stream of (name, tensor) that ``Model.load_weights`` takes, reporting to ``progress`` on the way.

    Progress starts at 0 and ends at ``total_bytes``; a tensor counts as done once the consumer asks for
    the next one.
    """
    return NamedTensors(_report(checkpoint, progress), checkpoint.shapes)


class NamedTensors(Iterator[tuple[str, torch.Tensor]]):
    """An iterator over (name, tensor) that knows the ``shapes`` beforehand, if anybody does."""

    def __init__(
        self, stream: Iterator[tuple[str, torch.Tensor]], shapes: Mapping[str, tuple[int, ...]] | None
    ) -> None:
        self._stream = stream
        self.shapes = shapes

    def __next__(self) -> tuple[str, torch.Tensor]:
        return next(self._stream)


def _report(checkpoint: Checkpoint, progress: Progress | None) -> Iterator[tuple[str, torch.Tensor]]:
    done = 0
    if progress is not None:
        progress(0, checkpoint.total_bytes)
    for stored in checkpoint.tensors:
        num_bytes = stored.num_bytes
        yield stored.name, stored.tensor
        del stored  # before the next read, so that two tensors are never alive here at once
        done += num_bytes
        if progress is not None:
            progress(done, checkpoint.total_bytes)
