"""Seeds and the (seed, position) random numbers."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rootlet.sampling.draw import uniforms
from rootlet.sampling.seeds import GOLDEN, derive_seed, mix64, random_seed, stream_key

seeds = st.integers(0, 2**63 - 1)


def test_mix64_is_splitmix64():
    """First outputs of SplitMix64 from state 1234567, as published with its reference code."""
    outputs = [mix64(1234567 + (i + 1) * GOLDEN) for i in range(5)]
    assert outputs == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


@given(seed=seeds, positions=st.lists(st.integers(0, 2**40), min_size=1, max_size=9))
def test_tensor_uniforms_equal_the_python_hash(seed, positions):
    key = stream_key(seed)
    got = uniforms(torch.full((len(positions),), key), torch.tensor(positions)).tolist()
    assert got == [(mix64(key + (p + 1) * GOLDEN) >> 11) / 2**53 for p in positions]


@given(seeds)
def test_stream_key_fits_int64(seed):
    assert -(2**63) <= stream_key(seed) < 2**63


@pytest.mark.parametrize("by_position", [True, False])
def test_uniforms_are_uniform_and_uncorrelated(by_position):
    """Chi-square over 256 bins, and over 16 x 16 bins of neighbours; false-alarm probability 1e-6 each."""
    count = 200_000
    if by_position:
        keys, positions = torch.full((count,), stream_key(0)), torch.arange(count)
    else:
        keys, positions = torch.tensor([stream_key(s) for s in range(count)]), torch.full((count,), 100)
    u = uniforms(keys, positions)
    assert bool((u >= 0).all())
    assert bool((u < 1).all())
    pairs = (u[:-1] * 16).long() * 16 + (u[1:] * 16).long()
    for bins in ((u * 256).long(), pairs):
        observed = torch.bincount(bins, minlength=256).double()
        expected = len(bins) / 256
        statistic = ((observed - expected) ** 2 / expected).sum()
        assert torch.special.gammaincc(torch.tensor(255 / 2).double(), statistic / 2) > 1e-6


def test_derived_seeds():
    assert derive_seed(42, 0) == 42
    derived = {derive_seed(base, index) for base in range(100) for index in range(100)}
    assert len(derived) == 100 * 100
    assert all(0 <= seed < 2**63 for seed in derived)


def test_random_seed_uses_its_own_source():
    state = random.getstate()
    drawn = {random_seed() for _ in range(100)}
    assert random.getstate() == state
    assert len(drawn) == 100
    assert all(0 <= seed < 2**63 for seed in drawn)
    assert random_seed(random.Random(1)) == random_seed(random.Random(1)) != random_seed(random.Random(2))
