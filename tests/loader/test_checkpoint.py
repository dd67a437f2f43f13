"""The stream of named tensors itself."""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import torch

from rootlet.models.loader.checkpoint import Checkpoint, StoredTensor, named_tensors


def test_a_tensor_is_let_go_before_the_next_is_read():
    references: list[weakref.ref] = []

    def make(i: int) -> torch.Tensor:
        tensor = torch.full((2,), float(i))
        references.append(weakref.ref(tensor))
        return tensor

    def read() -> Iterator[StoredTensor]:
        for i in range(4):
            assert all(reference() is None for reference in references)
            yield StoredTensor(str(i), make(i), 8)

    calls = []
    stream = named_tensors(Checkpoint(read(), 32), lambda done, total: calls.append((done, total)))
    values = []
    for name, tensor in stream:
        values.append((name, tensor.sum().item()))
        del tensor
    assert values == [(str(i), 2.0 * i) for i in range(4)]
    assert calls == [(8 * i, 32) for i in range(5)]
