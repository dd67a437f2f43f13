"""Rows of an embedding table."""

from __future__ import annotations

import pytest
import torch

from rootlet.kernels.embedding import embed

pytestmark = pytest.mark.usefixtures("implementation")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("count", "size"), [(1, 576), (9, 7), (500, 300), (0, 8)])
def test_rows(count, size, dtype):
    table = torch.randn(50, size).to(dtype)
    ids = torch.randint(0, 50, (count,))
    assert torch.equal(embed(ids, table), table[ids])


def test_strided_ids_and_table():
    table = torch.randn(20, 60)[:, ::2]
    ids = torch.arange(20)[::3]
    assert torch.equal(embed(ids, table), table[ids])


@pytest.mark.parametrize("wrong", [-1, 50])
def test_id_outside_the_table_is_refused(wrong):
    with pytest.raises(IndexError):
        embed(torch.tensor([3, wrong]), torch.randn(50, 8))
