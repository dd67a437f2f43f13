"""Memory that comes and goes behind addresses that stay: the bookkeeping, over a driver that checks it."""

from __future__ import annotations

import gc

import pytest
import torch
from fake_driver import GRANULE, FakeDriver
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from rootlet.errors import DeviceMemoryError
from rootlet.kernels.arena import Arena

BIG = 5 * GRANULE  # three pieces


@pytest.fixture
def driver():
    return FakeDriver()


def test_memory_is_given_back_and_taken_where_it_was(driver):
    arena = Arena(driver)
    tensors = [arena.bytes(BIG), arena.bytes(1)]
    assert [len(tensor) for tensor in tensors] == [BIG, 1]
    assert arena.held() == driver.taken == BIG + GRANULE
    places = dict(driver.reserved)
    assert arena.release() == BIG + GRANULE
    assert (arena.held(), driver.taken) == (0, 0)
    assert arena.release() == 0
    assert arena.resume() == BIG + GRANULE
    assert arena.resume() == 0
    assert driver.reserved == places
    assert driver.allowed == driver.mapped.keys()


def test_values_that_are_kept_come_back(driver):
    arena = Arena(driver)
    one, two = arena.bytes(BIG), arena.bytes(10)
    one.copy_(torch.arange(BIG, dtype=torch.uint8))
    two.fill_(3)
    for _ in range(3):
        arena.release(keep=True)
        assert int(one[0]) == 0xEE
        arena.resume()
        assert torch.equal(one, torch.arange(BIG, dtype=torch.uint8))
        assert torch.equal(two, torch.full_like(two, 3))
    assert driver.calls.count("host_memory") == 2  # locking memory takes long: once
    arena.release()
    arena.resume()
    assert int(one[0]) == 0xEE  # and copies of another time stay where they are


def test_zeros_are_zeros_each_time(driver):
    arena = Arena(driver, zeroed=True)
    pages = arena.zeros((3, 4), torch.int64, torch.device("cpu"))
    assert pages.dtype is torch.int64
    for _ in range(2):
        assert torch.equal(pages, torch.zeros(3, 4, dtype=torch.int64))
        pages.fill_(7)
        arena.release()
        arena.resume()
    assert not pages.is_inference()


@pytest.mark.parametrize("after", range(3))
@pytest.mark.parametrize("call", ["map", "allow"])
def test_what_fails_in_the_middle_leaves_nothing(driver, call, after):
    arena = Arena(driver)
    arena.bytes(BIG)
    arena.bytes(BIG)
    arena.release()
    driver.refuse = (call, after if call == "map" else after % 2)
    with pytest.raises(DeviceMemoryError, match=r"refuses: \w+: CUDA_ERROR_UNKNOWN \(999\), for 640 bytes"):
        arena.resume()
    assert driver.taken == arena.held() == 0
    assert arena.resume() == 2 * BIG


@pytest.mark.parametrize("call", ["reserve", "map", "allow"])
def test_a_block_that_fails_is_no_block(driver, call):
    arena = Arena(driver)
    driver.refuse = (call, 0)
    with pytest.raises(DeviceMemoryError):
        arena.bytes(BIG)
    assert (driver.reserved, driver.mapped, arena.held()) == ({}, {}, 0)


def test_too_little_memory_is_named_and_can_be_tried_again():
    driver = FakeDriver(room=8)
    arena = Arena(driver)
    arena.bytes(BIG)
    arena.release()
    others = Arena(driver)
    others.bytes(4 * GRANULE)
    with pytest.raises(DeviceMemoryError, match=r"OUT_OF_MEMORY \(2\), for 320 bytes, of which 256 are free"):
        arena.resume()
    assert driver.taken == 4 * GRANULE
    others.close()
    assert arena.resume() == BIG


def test_what_the_process_only_caches_is_given_back_first():
    driver = FakeDriver(room=8)
    arena = Arena(driver)
    arena.bytes(BIG)
    arena.release()
    driver.cached = 6 * GRANULE
    assert arena.resume() == BIG


def test_an_error_while_unmapping_can_be_tried_again(driver):
    arena = Arena(driver)
    arena.bytes(BIG)
    driver.refuse = ("unmap", 1)
    with pytest.raises(DeviceMemoryError):
        arena.release()
    assert arena.held() == BIG  # as long as any of it is there
    assert arena.release() == BIG
    assert driver.taken == 0


@pytest.mark.parametrize("released", [False, True])
def test_closing_gives_memory_and_addresses_back(driver, released):
    arena = Arena(driver)
    arena.bytes(BIG)
    if released:
        arena.release()
    arena.close()
    assert (driver.reserved, driver.mapped) == ({}, {})


def test_whoever_holds_a_tensor_keeps_its_block(driver):
    arena = Arena(driver)
    held = arena.bytes(BIG)
    arena.bytes(BIG)
    arena.close()
    gc.collect()
    assert driver.taken == BIG
    del held
    assert (driver.reserved, driver.mapped) == ({}, {})


class ArenaMachine(RuleBasedStateMachine):
    """Two arenas of one device come and go, with errors at any call."""

    def __init__(self):
        super().__init__()
        self.driver = FakeDriver(room=24)
        self.arenas = [Arena(self.driver), Arena(self.driver, zeroed=True)]
        self.values = [[], []]  # (tensor, what it must hold; None: anything)

    def _try(self, index, action, *args, **kwargs):
        try:
            return action(*args, **kwargs)
        except DeviceMemoryError:
            return None
        finally:
            self.driver.refuse = None

    @rule(index=st.integers(0, 1), size=st.integers(1, 5 * GRANULE), value=st.integers(0, 200))
    def allocate(self, index, size, value):
        arena = self.arenas[index]
        if arena.held() or not self.values[index]:
            tensor = self._try(index, arena.bytes, size)
            if tensor is not None:
                self.values[index].append([tensor.fill_(value), value])

    @rule(call=st.sampled_from(["reserve", "map", "allow"]), after=st.integers(0, 4))
    def fail_soon(self, call, after):
        self.driver.refuse = (call, after)

    @rule(index=st.integers(0, 1), keep=st.booleans())
    def release(self, index, keep):
        before = self.arenas[index].held()
        assert self.arenas[index].release(keep=keep) == before
        if before and not keep:
            for entry in self.values[index]:
                entry[1] = 0 if index else None

    @rule(index=st.integers(0, 1))
    def resume(self, index):
        arena, before = self.arenas[index], self.driver.taken
        taken = self._try(index, arena.resume)
        assert self.driver.taken == before + (taken or 0)

    @invariant()
    def memory_is_what_the_arenas_hold(self):
        assert sum(arena.held() for arena in self.arenas) == self.driver.taken
        assert self.driver.allowed == self.driver.mapped.keys()

    @invariant()
    def values_are_right_where_there_is_memory(self):
        for arena, entries in zip(self.arenas, self.values):
            if arena.held():
                assert all(v is None or bool((tensor == v).all()) for tensor, v in entries)

    def teardown(self):
        self.values = []
        for arena in self.arenas:
            arena.close()
        assert (self.driver.reserved, self.driver.mapped) == ({}, {})


TestArenaStates = ArenaMachine.TestCase
TestArenaStates.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
