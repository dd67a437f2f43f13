"""What operations cost, counted in calls (Python and C) instead of seconds."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable

import pytest

from rootlet.cache.page_pool import PagePool
from rootlet.cache.radix_cache import RadixCache


def count_calls(function: Callable[[], object]) -> int:
    calls = 0

    def profile(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(before)
    return calls


def filled(page_size: int, sequences: list[array]) -> RadixCache:
    pool = PagePool(1 + sum(-(-len(tokens) // page_size) for tokens in sequences))
    cache = RadixCache(pool, page_size)
    for tokens in sequences:
        pages = pool.allocate(-(-len(tokens) // page_size))
        cache.insert(tokens, pages)
        pool.release(pages)
    return cache


@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize("as_list", [False, True])
def test_calls_do_not_grow_with_the_prompt(page_size: int, as_list: bool) -> None:
    def cost(length: int) -> int:
        tokens = array("i", range(length))
        cache = filled(page_size, [tokens])
        given = list(tokens) if as_list else tokens
        changed = list(given)
        changed[length * 2 // 3] = -1
        pages = list(range(1, 1 + -(-length // page_size)))
        return count_calls(
            lambda: (
                cache.match(given, length - 1),
                cache.match(changed, length - 1),
                cache.insert(given, pages),
            )
        )

    assert cost(131072) < cost(1024) + 150  # some more steps of galloping and bisection, nothing per token


def test_calls_of_a_partial_match_do_not_grow_with_the_siblings() -> None:
    def cost(siblings: int) -> int:
        cache = filled(16, [array("i", [*range(14), 3 * i, 0]) for i in range(siblings)])
        query = array("i", [*range(14), siblings + 1, 1])
        return count_calls(lambda: cache.match(query, 16))

    assert cost(4000) <= cost(10) + 10


@pytest.mark.parametrize("page_size", [1, 16])
def test_calls_of_an_eviction_do_not_grow_with_the_tree(page_size: int) -> None:
    def cost(sequences: int) -> int:
        cache = filled(page_size, [array("i", [i] * page_size * 2) for i in range(sequences)])
        return count_calls(lambda: [cache.evict(1) for _ in range(8)])

    assert cost(5000) <= cost(10) + 10


def test_calls_of_an_eviction_do_not_grow_with_the_pages_of_a_leaf() -> None:
    def cost(pages: int) -> int:
        cache = filled(1, [array("i", range(2000))])
        return count_calls(lambda: cache.evict(pages))

    assert cost(1000) <= cost(1) + 1000  # the pool's note of each page freed, nothing else


def test_touches_are_paid_for_once() -> None:
    sequences = [array("i", [i, i]) for i in range(1000)]
    cache = filled(1, sequences)
    for _ in range(20):
        for tokens in sequences:
            cache.match(tokens, 2)
    first = count_calls(lambda: cache.evict(1))
    second = count_calls(lambda: cache.evict(1))
    assert first < 20 * len(sequences)  # one correction per sequence, however often it was touched
    assert second < 40


def test_replaced_leaves_do_not_pile_up_in_the_queue() -> None:
    pool = PagePool(8)
    cache = RadixCache(pool, 1024)
    for length in range(1, 1024):
        pages = pool.allocate(1)
        cache.insert(range(length), pages)
        pool.release(pages)
    cache.check_invariants()
    assert cache.num_pages == 1
    assert len(cache._leaves) < 200


def test_flushed_leaves_do_not_pile_up_in_the_queue() -> None:
    pool = PagePool(8)
    cache = RadixCache(pool, 1)
    for _ in range(200):
        pages = pool.allocate(5)
        for token, page in enumerate(pages):
            cache.insert([token], [page])
        pool.release(pages)
        cache.flush()
    assert pool.num_free == 7
    assert len(cache._leaves) < 200
