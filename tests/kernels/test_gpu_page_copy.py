"""Copying pages in all planes, all read before any is written."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("supported_triton")

from rootlet.kernels.gpu.page_copy import copy_pages, copy_pages_reference


@pytest.fixture
def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def ints(values, device) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device=device)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((6, 9, 16, 2, 8), torch.bfloat16),
        ((2, 9, 1, 1, 3), torch.bfloat16),  # six bytes a page: moved by twos
        ((4, 9, 3, 1, 5), torch.float32),
        ((4, 9, 1, 3, 5), torch.float8_e4m3fn),  # an odd number of bytes
    ],
    ids=str,
)
@pytest.mark.parametrize("block", [16, 1024])
def test_chain_cycle_and_copies(shape, dtype, block, device):
    data = torch.randint(0, 255, (*shape[:-1], shape[-1] * dtype.itemsize), dtype=torch.uint8, device=device)
    data = data.view(dtype)
    expected = data.clone()
    src, dst = ints([1, 2, 3, 4, 4, 7], device), ints([2, 3, 1, 5, 6, 7], device)
    copy_pages_reference(expected, src, dst)
    before = data.clone()
    copy_pages(data, src, dst, block=block)
    assert torch.equal(data.view(torch.uint8), expected.view(torch.uint8))
    assert torch.equal(data[:, 2].view(torch.uint8), before[:, 1].view(torch.uint8))
    assert torch.equal(data[:, 1].view(torch.uint8), before[:, 3].view(torch.uint8))


def test_nothing_to_copy(device):
    data = torch.randn(2, 4, 2, 1, 4, device=device)
    before = data.clone()
    copy_pages(data, ints([], device), ints([], device))
    assert torch.equal(data, before)


def test_refusals(device):
    data = torch.zeros(2, 4, 2, 1, 4, device=device)
    with pytest.raises(ValueError, match="int32"):
        copy_pages(data, ints([1], device).long(), ints([2], device))
    with pytest.raises(ValueError, match="src"):
        copy_pages(data, ints([1], device), ints([2, 3], device))
    with pytest.raises(ValueError, match="contiguous"):
        copy_pages(data.transpose(2, 3).transpose(0, 1), ints([1], device), ints([2], device))
