"""Gathering a step's inputs from the slot tables and writing sampled tokens back."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("supported_triton")

from rootlet.kernels.gpu.step_inputs import (
    prepare_step,
    prepare_step_reference,
    store_tokens,
    store_tokens_reference,
)

SLOTS, WIDTH = 7, 50


@pytest.fixture
def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def tables(device):
    """Token and page tables; row 0 holds what nobody may read."""
    tokens = torch.randint(0, 1000, (SLOTS, WIDTH), dtype=torch.int32, device=device)
    pages = torch.randint(1, 2**31 // 4, (SLOTS, WIDTH), dtype=torch.int32, device=device)
    tokens[0] = pages[0] = -1
    return tokens, pages


@pytest.mark.parametrize("page_size", [1, 3, 16])
@pytest.mark.parametrize("count", [1, 37, 300])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_prepare_step(tables, count, page_size, dtype, device):
    slots = torch.randint(0, SLOTS, (count,), dtype=dtype, device=device)
    positions = torch.randint(0, WIDTH, (count,), dtype=dtype, device=device)
    expected = prepare_step_reference(*tables, slots, positions, page_size)
    actual = prepare_step(*tables, slots, positions, page_size)
    ids = torch.full((count + 2,), -7, dtype=torch.int32, device=device)
    places = torch.full((count + 2,), -7, device=device)
    given = prepare_step(*tables, slots, positions, page_size, ids[:count], places[:count], block=64)
    for result in (actual, given):
        assert torch.equal(result[0].long(), expected[0])
        assert torch.equal(result[1], expected[1])
    assert actual[0].dtype == torch.int64
    assert (ids[count:] == -7).all()
    assert (places[count:] == -7).all()


def test_padding_may_stand_at_any_position(tables, device):
    slots = torch.zeros(2, dtype=torch.int32, device=device)
    positions = torch.tensor([0, 10**8], dtype=torch.int32, device=device)
    ids, places = prepare_step(*tables, slots, positions, 16)
    assert ids.tolist() == [0, 0]
    assert places.tolist() == [0, 10**8 % 16]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_store_tokens(tables, dtype, device):
    tokens, _ = tables
    expected = tokens.clone()
    slots = torch.tensor([1, 0, 6, 2, 3, 1, 5], dtype=dtype, device=device)
    positions = torch.tensor([0, 3, WIDTH - 1, WIDTH, 10**6, 7, -1], dtype=dtype, device=device)
    ids = torch.arange(100, 107, dtype=dtype, device=device)
    store_tokens_reference(expected, slots, positions, ids)
    store_tokens(tokens, slots, positions, ids)
    assert torch.equal(tokens, expected)
    assert [tokens[1, 0].item(), tokens[6, -1].item(), tokens[1, 7].item()] == [100, 102, 105]


def test_nothing_to_do(tables, device):
    none = torch.empty(0, dtype=torch.int32, device=device)
    ids, places = prepare_step(*tables, none, none, 16)
    store_tokens(tables[0], none, none, none)
    assert ids.shape == places.shape == (0,)


def test_refusals(tables, device):
    slots = torch.zeros(4, dtype=torch.int32, device=device)
    with pytest.raises(ValueError, match="positions"):
        prepare_step(*tables, slots, slots[:3], 16)
    with pytest.raises(ValueError, match="pages"):
        prepare_step(tables[0], tables[1].long(), slots, slots, 16)
    with pytest.raises(ValueError, match="page_size"):
        prepare_step(*tables, slots, slots, 0)
    with pytest.raises(ValueError, match="kv_slots"):
        prepare_step(*tables, slots, slots, 16, kv_slots=slots)
    with pytest.raises(ValueError, match="token_ids"):
        store_tokens(tables[0], slots, slots, slots.float())
