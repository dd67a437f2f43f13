"""Slots: what a checkpoint's tensor becomes in a store, and the way back, on stores of both kinds."""

from __future__ import annotations

import pytest
import torch

from rootlet.models.layers.matrices import FloatMatrix
from rootlet.models.layers.slots import Columns, Expanded, Ranks, RotaryPairs, Rows, Shard, Transposed, whole
from rootlet.models.layers.storage import TensorStore

CPU = torch.device("cpu")


def numbers(*shape: int) -> torch.Tensor:
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).view(shape)


@pytest.fixture(params=[TensorStore, FloatMatrix])
def store(request):
    """Six rows of four columns, in plain memory or, where there are C kernels, in panels."""
    return request.param((6, 4), torch.float32, CPU)


def fill(store, *slots):
    """Load numbers into slots that fill a store together; what was loaded."""
    assert all(slot.get() is None for slot in slots)
    loaded = [100 * i + numbers(*slot.shape) for i, slot in enumerate(slots)]
    for slot, tensor in zip(slots, loaded):
        slot.load(tensor)
    for slot, tensor in zip(slots, loaded):
        assert slot.shape == tuple(tensor.shape)
        assert torch.equal(slot.get(), tensor)
    return loaded, store.read()


def test_rows(store):
    (first, second), kept = fill(store, Rows(store, 0, 2), Rows(store, 2, 6))
    assert torch.equal(kept, torch.cat((first, second)))


def test_columns(store):
    (left, right), kept = fill(store, Columns(whole(store), 0, 1), Columns(whole(store), 1, 4))
    assert torch.equal(kept, torch.cat((left, right), dim=1))


def test_transposed(store):
    (first, second), kept = fill(store, Rows(store, 0, 2), Transposed(Rows(store, 2, 6)))
    assert second.shape == (4, 4)
    assert torch.equal(kept, torch.cat((first, second.t())))


@pytest.mark.parametrize("dim", [None, 2])
def test_rotary_pairs(dim):
    """Two heads of six dimensions, of which all or the first two are rotated."""
    store = TensorStore((12, 3), torch.float32, CPU)
    (loaded,), kept = fill(store, RotaryPairs(whole(store), 2, dim))
    order = [0, 2, 4, 1, 3, 5] if dim is None else [0, 1, 2, 3, 4, 5]
    assert torch.equal(kept, torch.cat((loaded[order], loaded[[6 + i for i in order]])))


def test_rotated_neighbours_give_the_scores_of_rotated_halves():
    """Rotating pairs (2i, 2i + 1), as the formula has them, is rotating (i, i + D/2) of what is kept."""
    heads, size = 3, 8
    angles = torch.rand(size // 2)
    q, k = torch.randn(heads * size), torch.randn(heads * size)

    def rotate(x, pair_dim):
        pairs = x.view(heads, size // 2, 2) if pair_dim == 2 else x.view(heads, 2, size // 2).transpose(1, 2)
        a, b = pairs[..., 0], pairs[..., 1]
        return torch.stack((a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()), -1)

    def kept(x):
        store = TensorStore((heads * size, 1), torch.float32, CPU)
        RotaryPairs(whole(store), heads).load(x[:, None])
        return store.data[:, 0]

    want = (rotate(q, 2) * rotate(k, 2)).sum((1, 2))
    torch.testing.assert_close((rotate(kept(q), 1) * rotate(kept(k), 1)).sum((1, 2)), want)


@pytest.mark.parametrize("shape", [(), (1,)])
def test_expanded(shape):
    store = TensorStore((6,), torch.float32, CPU)
    slots = [Expanded(Rows(store, 0, 2), shape), Expanded(Rows(store, 2, 6), shape)]
    _, kept = fill(store, *slots)
    assert kept.tolist() == [0, 0, 100, 100, 100, 100]


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_shard(store, dim, rank):
    slot = Shard(whole(store), dim, Ranks(rank, 3))
    tensor = numbers(*slot.shape)
    slot.load(tensor)
    assert slot.shape == ((18, 4) if dim == 0 else (6, 12))
    assert torch.equal(slot.get(), tensor.chunk(3, dim)[rank])
    assert torch.equal(store.read(), slot.get())


def test_what_a_slot_accepts():
    floats, whole_numbers = (whole(TensorStore((2,), d, CPU)) for d in (torch.bfloat16, torch.int8))
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert floats.accepts(dtype)
        assert not whole_numbers.accepts(dtype)
        assert Expanded(floats).accepts(dtype)
    assert whole_numbers.accepts(torch.int8)
    assert not whole_numbers.accepts(torch.uint8)
    assert not floats.accepts(torch.int8)


def test_rows_are_written_straight_to_where_they_stay(monkeypatch):
    """Without panels: the first values go to the matrix itself, later ones to the same memory, at once."""
    from rootlet.kernels.matrices import packing

    monkeypatch.setattr(packing, "is_multiplied_in_c", lambda dtype: False)
    store = FloatMatrix((6, 4), torch.float32, CPU)
    upper, lower = Rows(store, 0, 2), Rows(store, 2, 6)
    upper.load(numbers(2, 4))
    assert (store.read(), store.nbytes) == (None, 96)
    lower.load(numbers(4, 4))
    memory = store.matrix.dense()
    address = memory.data_ptr()
    assert store.nbytes == 96
    upper.load(-numbers(2, 4))
    assert torch.equal(memory[:2], -numbers(2, 4))
    assert store.nbytes == 96
    store.finish()
    assert torch.equal(memory[2:], numbers(4, 4))
    assert store.matrix.dense().data_ptr() == address


def test_values_that_never_came_leave_nothing(store):
    if isinstance(store, FloatMatrix):
        Rows(store, 0, 2).load(numbers(2, 4))
        store.finish()
        assert (store.read(), store.nbytes) == (None, 0)
