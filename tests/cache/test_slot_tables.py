"""Slot ids and the per-slot device tables."""

from __future__ import annotations

from array import array

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rootlet.cache.slot_pool import SlotPool
from rootlet.cache.slot_tables import SlotTables

SLOTS, MAX_TOKENS, PAGE_SIZE = 5, 23, 4
MAX_PAGES = 6


@st.composite
def disjoint_runs(draw: st.DrawFn, columns: int) -> list[tuple[int, int, list[int]]]:
    """At most two runs per row, in any order, with values that occur nowhere else."""
    runs = []
    first = draw(st.integers(0, 2**30))
    for slot in draw(st.permutations(range(SLOTS))):
        cuts = sorted(draw(st.tuples(*[st.integers(0, columns)] * 4)))
        for start, end in (cuts[2:], cuts[:2]):
            runs.append((slot, start, list(range(first, first + end - start))))
            first += end - start
    return runs


def expected(columns: int, *writes: list[tuple[int, int, list[int]]]) -> list[list[int]]:
    rows = [[0] * columns for _ in range(SLOTS)]
    for runs in writes:
        for slot, start, values in runs:
            rows[slot][start : start + len(values)] = values
    return rows


@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_writes_land_where_they_should(data: st.DataObject) -> None:
    tables = SlotTables(SLOTS, MAX_TOKENS, PAGE_SIZE, "cpu")
    token_writes, page_writes = [], []
    for _ in range(data.draw(st.integers(1, 3))):
        token_writes.append(data.draw(disjoint_runs(MAX_TOKENS)))
        page_writes.append(data.draw(disjoint_runs(MAX_PAGES)))
        tables.write(token_writes[-1], page_writes[-1])
    assert tables.tokens.tolist() == expected(MAX_TOKENS, *token_writes)
    assert tables.pages.tolist() == expected(MAX_PAGES, *page_writes)


def test_single_writes_and_all_kinds_of_sequences() -> None:
    tables = SlotTables(3, 10, 4, torch.device("cpu"))
    ids = array("i", [7, 8, 9])
    tables.set_tokens(1, 2, ids)
    tables.set_tokens(2, 0, (5,))
    tables.set_pages(2, 1, range(3, 5))
    tables.write()
    ids.append(10)  # nothing holds on to the caller's buffer
    assert tables.tokens[1].tolist() == [0, 0, 7, 8, 9, 0, 0, 0, 0, 0]
    assert tables.tokens[2, 0] == 5
    assert tables.pages.tolist() == [[0, 0, 0], [0, 0, 0], [0, 3, 4]]
    assert (tables.tokens.dtype, tables.pages.dtype) == (torch.int32, torch.int32)
    assert tables.nbytes == 4 * (30 + 9)


@pytest.mark.parametrize("run", [(5, 0, [1]), (-1, 0, [1]), (1, 23, [1]), (1, -1, [1]), (4, 20, [1] * 4)])
def test_writing_outside_a_row_is_refused(run: tuple[int, int, list[int]]) -> None:
    tables = SlotTables(SLOTS, MAX_TOKENS, PAGE_SIZE, "cpu")
    with pytest.raises(AssertionError, match="outside"):
        tables.write([(0, 0, [1]), run])
    assert not tables.tokens.any()


def test_large_tables_cost_nothing_until_written() -> None:
    with open("/proc/self/statm") as file:
        before = int(file.read().split()[1])
    tables = SlotTables(4096, 131072, 1, "cpu")
    tables.set_tokens(4095, 131071, [3])
    assert tables.tokens[4095, 131071] == 3
    with open("/proc/self/statm") as file:
        resident_pages = int(file.read().split()[1]) - before
    assert tables.nbytes == 2 * 4096 * 131072 * 4
    assert resident_pages * 4096 < tables.nbytes / 50
    tables.close()
    tables.close()
    assert tables.nbytes == 0


@given(st.lists(st.integers(0, 6), max_size=40))
@settings(max_examples=60, deadline=None)
def test_slots_are_handed_out_smallest_first(choices: list[int]) -> None:
    pool, used = SlotPool(6), set()
    for choice in choices:
        if choice in used:
            pool.release(choice)
            used.remove(choice)
        elif pool.num_free:
            slot = pool.allocate()
            assert slot == min(set(range(1, 6)) - used)
            used.add(slot)
        assert pool.num_free == 5 - len(used)


def test_misuse_of_slots_is_noticed() -> None:
    pool = SlotPool(2)
    assert (pool.num_slots, pool.allocate()) == (2, 1)
    with pytest.raises(AssertionError, match="taken"):
        pool.allocate()
    pool.release(1)
    for slot in (0, 1, 7):
        with pytest.raises(AssertionError, match=f"Slot {slot}"):
            pool.release(slot)
    with pytest.raises(AssertionError):
        SlotPool(1)
