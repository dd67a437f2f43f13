"""Every pair of features against a plain run, on the CPU."""

from __future__ import annotations

import pytest

from .composition import FEATURES, PAIRS, REFUSED, Engines, check_pair


@pytest.fixture(scope="module")
def engines(smollm2_gguf, tmp_path_factory):
    with Engines(smollm2_gguf, tmp_path_factory.mktemp("composition"), device="cpu") as engines:
        yield engines


@pytest.mark.parametrize("pair", PAIRS, ids=" + ".join)
def test_tokens_equal_those_of_a_plain_run(pair, engines):
    check_pair(pair, engines)


def test_no_pair_is_missing():
    assert len(FEATURES) == len(set(FEATURES)) == 17
    assert len(PAIRS) == 136
    assert all(pair <= set(FEATURES) for pair in REFUSED)
