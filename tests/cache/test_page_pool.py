"""The page pool against a multiset of references."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from rootlet.cache.page_pool import PagePool
from rootlet.errors import OutOfPagesError

NUM_PAGES = 12


class PoolMachine(RuleBasedStateMachine):
    """Random allocate, retain and release; ``held`` maps each page to its references."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(NUM_PAGES)
        self.held: Counter[int] = Counter()

    @rule(count=st.integers(0, NUM_PAGES))
    def allocate(self, count: int) -> None:
        room = NUM_PAGES - 1 - len(self.held)
        if count > room:
            with pytest.raises(OutOfPagesError, match=f"only {room} of {NUM_PAGES - 1} are free"):
                self.pool.allocate(count)
            return
        pages = self.pool.allocate(count)
        assert len(pages) == len(set(pages)) == count
        assert not set(pages) & set(self.held)
        assert all(0 < page < NUM_PAGES for page in pages)
        self.held.update(pages)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def retain(self, data: st.DataObject) -> None:
        pages = data.draw(st.lists(st.sampled_from(sorted(self.held)), max_size=6))
        self.pool.retain(pages)
        self.held.update(pages)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        references = sorted(self.held.elements())
        pages = data.draw(st.permutations(references))[: data.draw(st.integers(0, len(references)))]
        self.pool.release(pages)
        self.held -= Counter(pages)

    @invariant()
    def agrees(self) -> None:
        self.pool.check_invariants()
        assert self.pool.num_free == NUM_PAGES - 1 - len(self.held)
        assert [self.pool.refcount(page) for page in range(NUM_PAGES)] == [
            self.held[page] for page in range(NUM_PAGES)
        ]


PoolMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestPool = PoolMachine.TestCase


def test_order_is_last_in_first_out() -> None:
    pool = PagePool(8)
    assert pool.allocate(5) == [1, 2, 3, 4, 5]
    pool.release([2, 4])
    pool.release([1])
    assert pool.allocate(4) == [1, 2, 4, 6]


def test_failed_allocation_takes_nothing() -> None:
    pool = PagePool(4)
    with pytest.raises(OutOfPagesError):
        pool.allocate(4)
    assert pool.allocate(3) == [1, 2, 3]


@pytest.mark.parametrize("page", [0, 3])
def test_free_and_padding_pages_cannot_be_released_or_retained(page: int) -> None:
    pool = PagePool(4)
    pool.allocate(2)
    with pytest.raises(AssertionError, match=f"Page {page}"):
        pool.release([page])
    with pytest.raises(AssertionError, match=f"Page {page}"):
        pool.retain([page])


def test_releasing_one_reference_twice_in_one_call_is_noticed() -> None:
    pool = PagePool(4)
    [page] = pool.allocate(1)
    with pytest.raises(AssertionError):
        pool.release([page, page])


@pytest.mark.parametrize("num_pages", [0, 1])
def test_a_pool_without_a_usable_page_is_refused(num_pages: int) -> None:
    with pytest.raises(AssertionError):
        PagePool(num_pages)


def test_ownership_needs_no_torch() -> None:
    modules = "rootlet.cache.page_pool, rootlet.cache.radix_cache, rootlet.cache.slot_pool"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
