"""Documented behaviour of the radix tree, one case at a time."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rootlet.cache.page_pool import PagePool
from rootlet.cache.radix_cache import Prefix, RadixCache
from rootlet.cache.radix_node import common_prefix, token_array


class Tree:
    """A pool and a tree; ``add`` is a finished request that leaves only the tree's references."""

    def __init__(self, page_size: int, num_pages: int = 100, enabled: bool = True) -> None:
        self.page_size = page_size
        self.pool = PagePool(num_pages)
        self.cache = RadixCache(self.pool, page_size, enabled=enabled)

    def add(self, tokens: list[int], namespace: object = None) -> tuple[Prefix, list[int]]:
        pages = self.pool.allocate(-(-len(tokens) // self.page_size))
        place = self.cache.insert(tokens, pages, namespace)
        self.pool.release(pages)
        self.cache.check_invariants()
        return place, pages

    def found(self, tokens: list[int], namespace: object = None) -> int:
        return self.cache.match(tokens, len(tokens), namespace).num_tokens


# ---- matching


@pytest.mark.parametrize("page_size", [1, 2, 3, 16, 64])
@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 50])
def test_a_repeated_prompt_matches_all_but_its_last_token(page_size: int, length: int) -> None:
    tree = Tree(page_size)
    tokens = list(range(length))
    _, pages = tree.add(tokens)
    match = tree.cache.match(tokens, length - 1)
    assert match.num_tokens == length - 1
    assert match.pages == pages[: (length - 1) // page_size]
    inside = (length - 1) % page_size
    assert (match.partial_page, match.partial_tokens) == (
        (pages[len(match.pages)] if inside else None),
        inside,
    )


def test_limit_inside_a_full_page_makes_it_partial() -> None:
    tree = Tree(4)
    _, pages = tree.add(list(range(12)))
    match = tree.cache.match(list(range(12)), 6)
    assert (match.num_tokens, match.pages, match.partial_page, match.partial_tokens) == (
        6,
        pages[:1],
        pages[1],
        2,
    )


@pytest.mark.parametrize("limit", [0, -1])
def test_no_room_for_a_match_finds_nothing(limit: int) -> None:
    tree = Tree(4)
    tree.add(list(range(12)))
    assert tree.cache.match(list(range(12)), limit).num_tokens == 0


def test_matching_never_changes_the_structure() -> None:
    tree = Tree(4)
    place, _ = tree.add(list(range(12)))
    before = tree.cache.path(place)
    tree.cache.match([0, 1, 2, 3, 4, 5, 99], 7)
    assert tree.cache.path(place) == before
    assert len(before) == 1


def test_longest_continuation_inside_a_page_wins() -> None:
    tree = Tree(4)
    _, short = tree.add([1, 2, 8, 8])
    _, long = tree.add([1, 2, 3, 8])
    match = tree.cache.match([1, 2, 3, 4], 4)
    assert (match.num_tokens, match.partial_page) == (3, long[0])
    match = tree.cache.match([1, 2, 8, 9], 4)
    assert (match.num_tokens, match.partial_page) == (3, short[0])


def test_of_equally_long_continuations_the_one_sorted_next_wins() -> None:
    tree = Tree(4)
    _, pages = tree.add([1, 2, 9, 9])
    tree.add([1, 2, 0, 0])
    assert tree.cache.match([1, 2, 5, 5], 4).partial_page == pages[0]


@given(
    st.lists(st.lists(st.integers(0, 300), min_size=4, max_size=4), min_size=1, max_size=12),
    st.lists(st.integers(0, 300), min_size=1, max_size=4),
    st.randoms(use_true_random=False),
)
@settings(max_examples=150, deadline=None)
def test_partial_choice_depends_on_contents_not_on_history(siblings, query, random) -> None:
    def chosen(order: list[list[int]]) -> tuple[int, list[int]]:
        tree = Tree(4)
        owners = {tree.add(tokens)[1][0]: tokens for tokens in order if tree.found(tokens) < 4}
        match = tree.cache.match(query, len(query))
        page = match.pages[0] if match.pages else match.partial_page
        return match.num_tokens, owners.get(page, [])

    shuffled = list(siblings)
    random.shuffle(shuffled)
    assert chosen(siblings) == chosen(shuffled)


def test_thousands_of_siblings_differing_in_their_last_token() -> None:
    tree = Tree(16, num_pages=3000)
    stem = list(range(15))
    pages = {token: tree.pool.allocate(1) for token in range(0, 4000, 2)}
    for token, page in pages.items():
        tree.cache.insert([*stem, token], page)
    tree.cache.check_invariants()
    match = tree.cache.match([*stem, 1001], 16)
    assert match.partial_tokens == 15
    assert tree.cache.match([*stem, 1000], 16).pages == pages[1000]


# ---- inserting


def test_duplicates_are_not_taken() -> None:
    tree = Tree(2)
    _, first = tree.add([1, 2, 3, 4])
    own = tree.pool.allocate(3)
    place = tree.cache.insert([1, 2, 3, 4, 5, 6], own)
    assert [tree.pool.refcount(page) for page in [*first, *own]] == [1, 1, 1, 1, 2]
    assert tree.cache.pages(place) == [*first, own[2]]


def test_a_longer_sequence_replaces_the_partly_filled_page() -> None:
    tree = Tree(4)
    _, old = tree.add([1, 2, 3, 4, 5, 6])
    _, new = tree.add([1, 2, 3, 4, 5, 6, 7])
    assert tree.pool.refcount(old[1]) == 0
    assert tree.cache.match([1, 2, 3, 4, 5, 6, 7], 7).partial_page == new[1]
    assert tree.cache.num_pages == 2


def test_a_leaf_of_one_partly_filled_page_is_replaced_too() -> None:
    tree = Tree(4)
    _, old = tree.add([1, 2])
    tree.add([1, 2, 3, 4, 5])
    assert tree.pool.refcount(old[0]) == 0
    assert tree.cache.num_pages == 2


def test_the_same_page_filled_further_stays() -> None:
    tree = Tree(4)
    pages = tree.pool.allocate(2)
    tree.cache.insert([1, 2, 3, 4, 5], pages)
    tree.cache.insert([1, 2, 3, 4, 5, 6], pages)
    tree.pool.release(pages)
    tree.cache.check_invariants()
    match = tree.cache.match([1, 2, 3, 4, 5, 6, 7], 7)
    assert (match.num_tokens, match.partial_page) == (6, pages[1])


def test_a_shorter_or_equal_sequence_adds_nothing() -> None:
    tree = Tree(4)
    tree.add([1, 2, 3, 4, 5, 6, 7])
    for length in range(1, 8):
        tree.add([1, 2, 3, 4, 5, 6, 7][:length])
    assert tree.cache.num_pages == 2


@pytest.mark.parametrize("count", [1, 3])
def test_wrong_number_of_pages_is_refused(count: int) -> None:
    tree = Tree(4)
    with pytest.raises(AssertionError, match="5 tokens fill 2 pages"):
        tree.cache.insert([1, 2, 3, 4, 5], tree.pool.allocate(count))


def test_callers_lists_are_neither_kept_nor_shared() -> None:
    tree = Tree(1)
    tokens, pages = array("i", [1, 2, 3]), tree.pool.allocate(3)
    tree.cache.insert(tokens, pages)
    expected = list(pages)
    tokens.append(4)
    tokens[0] = 9
    pages.clear()
    match = tree.cache.match([1, 2, 3], 3)
    assert match.pages == expected
    match.pages.clear()
    assert tree.cache.match([1, 2, 3], 3).pages == expected


def test_tokens_outside_int32_are_refused() -> None:
    tree = Tree(1)
    with pytest.raises(OverflowError):
        tree.cache.insert([1 << 40], tree.pool.allocate(1))


# ---- locking


def test_locking_a_short_match_leaves_the_rest_of_the_node_evictable() -> None:
    tree = Tree(2)
    tree.add(list(range(20)))
    match = tree.cache.match([0, 1, 2, 3, 99], 5)
    tree.cache.lock(match.node)
    assert (tree.cache.num_locked, tree.cache.num_evictable) == (2, 8)
    assert tree.cache.evict(100) == 8
    assert tree.found(list(range(20))) == 4
    tree.cache.unlock(match.node)
    assert tree.cache.evict(100) == 2
    tree.cache.check_invariants()


def test_a_place_survives_splits_made_after_the_match() -> None:
    tree = Tree(1)
    tree.add(list(range(10)))
    long, middle, short = (tree.cache.match(list(range(10)), limit) for limit in (9, 6, 3))
    for match in (long, short, middle):
        tree.cache.lock(match.node)
        tree.cache.check_invariants()
    assert tree.cache.num_locked == 9
    tree.cache.unlock(long.node)
    assert tree.cache.num_locked == 6
    tree.cache.unlock(middle.node)
    assert tree.cache.num_locked == 3
    tree.cache.unlock(short.node)
    assert tree.cache.num_locked == 0


def test_locks_are_counted() -> None:
    tree = Tree(2)
    place, _ = tree.add([1, 2, 3, 4])
    tree.cache.lock(place)
    tree.cache.lock(place)
    tree.cache.unlock(place)
    assert tree.cache.evict(10) == 0
    tree.cache.unlock(place)
    with pytest.raises(AssertionError, match="more often"):
        tree.cache.unlock(place)
    assert tree.cache.evict(10) == 2


def test_locking_what_was_evicted_is_refused() -> None:
    tree = Tree(2)
    tree.add([1, 2, 3, 4, 5, 6])
    match = tree.cache.match([1, 2, 3, 4, 5, 6], 6)
    tree.cache.evict(1)
    with pytest.raises(AssertionError, match="stale"):
        tree.cache.lock(match.node)
    tree.cache.evict(10)
    with pytest.raises(AssertionError, match="stale"):
        tree.cache.lock(match.node)


def test_a_place_whose_node_was_split_off_and_evicted_is_stale() -> None:
    tree = Tree(1)
    tree.add(list(range(9)))
    short, middle = (tree.cache.match(list(range(9)), limit) for limit in (3, 6))
    tree.cache.lock(middle.node)
    tree.cache.evict(9)
    with pytest.raises(AssertionError, match="stale"):
        tree.cache.lock(short.node)


def test_a_place_outlives_the_partly_filled_page_behind_it() -> None:
    tree = Tree(4)
    place, pages = tree.add([1, 2, 3, 4])
    place, _ = tree.add([1, 2, 3, 4, 5])
    tree.cache.evict(1)
    tree.cache.lock(place)
    assert tree.cache.pages(place) == pages
    assert (tree.cache.num_locked, tree.cache.num_evictable) == (1, 0)


def test_unlocking_what_was_never_locked_is_noticed() -> None:
    tree = Tree(1)
    place, _ = tree.add([1, 2, 3, 4])
    tree.cache.lock(place)
    with pytest.raises(AssertionError, match="not locked"):
        tree.cache.unlock(tree.cache.match([1, 2], 2).node)
    assert tree.cache.num_locked == 4


def test_the_partly_filled_page_of_a_locked_sequence_stays_evictable() -> None:
    tree = Tree(4)
    place, _ = tree.add([1, 2, 3, 4, 5])
    tree.cache.lock(place)
    assert (tree.cache.num_locked, tree.cache.num_evictable) == (1, 1)
    assert tree.cache.evict(10) == 1


# ---- evicting


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 7)), max_size=60))
@settings(max_examples=100, deadline=None)
def test_whole_sequences_go_in_order_of_last_use(uses: list[tuple[bool, int]]) -> None:
    tree = Tree(2)
    order: list[int] = []
    for insert, name in uses:
        tokens = [name, name, name]
        if insert or name in order:
            tree.add(tokens) if insert else tree.cache.match(tokens, 3)
            order = [other for other in order if other != name] + [name]
    while order:
        assert tree.cache.evict(2) == 2
        oldest = order.pop(0)
        assert [tree.found([name, name, name]) for name in (oldest, *order)] == [0] + [3] * len(order)
        for name in order:  # looking was a use as well, in the same order
            tree.found([name, name, name])
    assert tree.cache.num_pages == 0


def test_being_matched_inside_a_page_is_a_use_and_a_similar_insertion_is_none() -> None:
    tree = Tree(4)
    tree.add([1, 2, 3, 3])
    tree.add([5, 5, 5, 5])
    assert tree.found([1, 2, 9]) == 2
    assert tree.cache.evict(1) == 1
    assert tree.found([5]) == 0
    tree.add([5, 5, 5, 5])
    tree.add([1, 2, 4, 4])
    assert tree.cache.evict(1) == 1
    assert (tree.found([1, 2, 3, 3]), tree.found([1, 2, 4, 4]), tree.found([5])) == (2, 4, 1)


def test_eviction_takes_no_more_than_needed_and_from_the_end() -> None:
    tree = Tree(2)
    tokens = list(range(20))
    tree.add(tokens)
    assert tree.cache.evict(3) == 3
    assert tree.found(tokens) == 14
    assert tree.cache.evict(1) == 1
    assert tree.found(tokens) == 12
    tree.cache.check_invariants()


def test_a_parent_becomes_a_leaf_when_its_children_are_gone() -> None:
    tree = Tree(1)
    tree.add([1, 2, 3])
    tree.add([1, 2, 4])
    tree.add([9])
    assert tree.cache.evict(3) == 3
    assert tree.found([1, 2, 3]) == 1
    assert tree.found([9]) == 1


def test_pages_held_by_a_table_do_not_count_and_do_not_stop_eviction() -> None:
    tree = Tree(1)
    _, held = tree.add([1, 2, 3])
    tree.pool.retain(held)
    tree.add([4, 5])
    assert tree.cache.evict(2) == 2
    assert tree.cache.num_pages == 0
    assert [tree.pool.refcount(page) for page in held] == [1, 1, 1]


@pytest.mark.parametrize("count", [0, -3])
def test_evicting_nothing(count: int) -> None:
    tree = Tree(1)
    tree.add([1, 2, 3])
    assert tree.cache.evict(count) == 0
    assert tree.cache.num_pages == 3


# ---- namespaces, flushing, switching off


def test_namespaces_do_not_see_each_other_and_share_eviction() -> None:
    tree = Tree(2)
    for name in (None, "adapter", ("adapter", 2)):
        tree.add([1, 2, 3], name)
    assert tree.cache.num_pages == 6
    assert tree.cache.evict(2) == 2
    assert [tree.found([1, 2, 3], name) for name in (None, "adapter", ("adapter", 2))] == [0, 3, 3]
    assert tree.cache.flush("adapter") == 2
    assert [tree.found([1, 2, 3], name) for name in (None, "adapter", ("adapter", 2))] == [0, 0, 3]
    tree.cache.check_invariants()


def test_flush_drops_everything_or_nothing() -> None:
    tree = Tree(2)
    place, _ = tree.add([1, 2, 3])
    tree.add([1, 2, 3], "other")
    tree.cache.lock(place)
    with pytest.raises(AssertionError, match="running requests use 1"):
        tree.cache.flush()
    assert tree.cache.num_pages == 4
    tree.cache.unlock(place)
    assert tree.cache.flush() == 4
    assert tree.pool.num_free == 99
    assert tree.cache.evict(1) == 0
    tree.add([1, 2, 3])
    assert tree.found([1, 2, 3]) == 3


def test_switched_off_it_keeps_and_finds_nothing() -> None:
    tree = Tree(2, enabled=False)
    place, pages = tree.add([1, 2, 3, 4])
    match = tree.cache.match([1, 2, 3, 4], 3)
    assert (match.num_tokens, match.pages, match.partial_page, tree.cache.num_pages) == (0, [], None, 0)
    for anywhere in (place, match.node):
        tree.cache.lock(anywhere)
        tree.cache.unlock(anywhere)
        assert tree.cache.pages(anywhere) == []
    assert [tree.pool.refcount(page) for page in pages] == [0, 0]
    assert (tree.cache.evict(3), tree.cache.flush()) == (0, 0)


# ---- helpers


def test_paths_share_what_the_sequences_share() -> None:
    tree = Tree(2)
    tree.add([1, 2, 3, 4, 5, 6])
    tree.add([1, 2, 7, 8])
    paths = [
        tree.cache.path(tree.cache.match(t, len(t)).node)
        for t in ([1, 2, 3, 4, 5, 6], [1, 2, 7, 8], [1, 2], [5])
    ]
    assert [len(path) for path in paths] == [2, 2, 1, 0]
    assert paths[0][0] == paths[1][0] == paths[2][0]
    assert paths[0][1] != paths[1][1]


@given(st.integers(0, 3000), st.integers(0, 3000), st.integers(0, 50), st.booleans())
@settings(max_examples=200, deadline=None)
def test_common_prefix_finds_the_first_difference(
    length: int, difference: int, start: int, as_list: bool
) -> None:
    stored = array("i", range(length))
    tokens = array("i", [-1] * start) + stored
    if difference < length:
        tokens[start + difference] = -1
    given_tokens = list(tokens) if as_list else tokens
    assert common_prefix(stored, given_tokens, start, len(tokens)) == min(length, difference)
    shorter = max(start, len(tokens) - 7)
    assert common_prefix(stored, given_tokens, start, shorter) == min(shorter - start, difference)


def test_token_array_copies_only_what_is_not_one() -> None:
    tokens = array("i", [1, 2])
    assert token_array(tokens) is tokens
    assert token_array([1, 2]) == token_array((1, 2)) == token_array(array("q", [1, 2])) == tokens
    assert token_array(array("q", [1, 2])).typecode == "i"
