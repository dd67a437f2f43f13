"""Pages of tensors in host memory, given back to the system."""

from __future__ import annotations

import mmap

import pytest
import torch

from rootlet.cache.memory import zeros
from rootlet.kernels.host_pages import GIVES_PAGES_BACK, HostPages

pytestmark = pytest.mark.skipif(not GIVES_PAGES_BACK, reason="madvise(MADV_DONTNEED) is Linux's")

PAGE = mmap.PAGESIZE
NUM = 64 * PAGE


def rss() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * PAGE


@pytest.mark.parametrize("make", ["torch", "mapped"])
def test_pages_leave_the_process_and_come_back_as_zeros(make):
    size = 32 * 2**20
    if make == "torch":
        tensor = torch.ones(size, dtype=torch.uint8)
    else:
        tensor = zeros((size,), torch.uint8, torch.device("cpu")).fill_(1)
    pages = HostPages(lambda: [tensor])
    address, before = tensor.data_ptr(), rss()
    assert size - 2 * PAGE <= pages.held() <= size
    freed = pages.release()
    assert size - 2 * PAGE <= freed <= size
    assert before - rss() == pytest.approx(freed, abs=2**20)
    assert pages.held() == 0
    assert pages.release() == 0
    assert pages.resume() == 0
    tensor.fill_(2)
    assert tensor.data_ptr() == address
    assert pages.held() >= size - 2 * PAGE


def test_neighbours_keep_theirs():
    whole = torch.ones(NUM, dtype=torch.uint8)
    part = whole[100 : NUM - 100]
    HostPages(lambda: [part]).release()
    zero = (whole == 0).nonzero().flatten()
    assert len(zero) % PAGE == 0
    assert len(zero) >= NUM - 4 * PAGE
    assert (whole.data_ptr() + int(zero[0])) % PAGE == 0
    assert bool((whole[:100] == 1).all())
    assert bool((whole[-100:] == 1).all())


def test_what_is_less_than_a_page_stays():
    small = torch.ones(7)
    pages = HostPages(lambda: [small])
    assert (pages.held(), pages.release()) == (0, 0)
    assert torch.equal(small, torch.ones(7))


def test_values_that_are_kept_are_left_where_they_are():
    tensor = torch.ones(NUM, dtype=torch.uint8)
    pages = HostPages(lambda: [tensor])
    held = pages.held()
    assert pages.release(keep=True) == 0
    assert pages.held() == held
    assert bool((tensor == 1).all())


def test_what_was_never_written_costs_nothing():
    untouched = zeros((NUM,), torch.uint8, torch.device("cpu"))
    pages = HostPages(lambda: [untouched])
    assert pages.held() == 0
    untouched[5 * PAGE] = 1
    assert pages.held() == PAGE
    assert pages.release() == PAGE


def test_views_with_gaps_are_refused():
    tensor = torch.ones(256, 1024)
    with pytest.raises(AssertionError, match="strides"):
        HostPages(lambda: [tensor[:, :512]]).release()
