"""``deterministic=True``: what a request answers depends, to the last bit, on the request alone."""

from __future__ import annotations

import itertools

import pytest
import torch

import rootlet
from rootlet.errors import ConfigError

from ..models.hf import build_hf
from ..support import mixes

# How an engine may cut, keep and repeat work. 200 mixes over all of them and both dtypes.
ENGINES = {
    "defaults": {},
    "chunks of 7, pages of 1": {"chunked_prefill_size": 7, "page_size": 1},
    "whole prompts, overlap": {"chunked_prefill_size": -1, "disable_overlap_schedule": False},
    "no cache": {"disable_radix_cache": True, "chunked_prefill_size": 33},
    "preemption": {"max_total_tokens": 288, "chunked_prefill_size": 32},
}
DTYPES = ("float32", "bfloat16")
MIXES = 20  # of each of ten


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """A random Llama whose widths are no multiples of anything."""
    folder = tmp_path_factory.mktemp("deterministic")
    config = {"hidden_size": 72, "num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 100}
    build_hf("Llama", max_position_embeddings=1024, **config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def make(folder):
    def make(**options) -> rootlet.Engine:
        options = {
            "max_total_tokens": 4096,
            "page_size": 16,
            "deterministic": True,
            "device": "cpu",
        } | options
        return rootlet.Engine(folder, skip_tokenizer_init=True, step_by_hand=True, **options)

    return make


@pytest.fixture(scope="module")
def expected(make):
    """Each request alone, by dtype."""
    answers = {}
    for dtype in DTYPES:
        with make(dtype=dtype) as engine:
            answers[dtype] = mixes.alone(engine)
    return answers


def own_seeds(options: str, dtype: str) -> range:
    """No mix is drawn twice: each engine and dtype has seeds of its own."""
    first = MIXES * (list(ENGINES).index(options) * len(DTYPES) + DTYPES.index(dtype))
    return range(first, first + MIXES)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", ENGINES)
def test_no_mix_changes_a_bit(options, dtype, make, expected):
    with make(dtype=dtype, **ENGINES[options]) as engine:
        for seed in own_seeds(options, dtype):
            assert not mixes.wrong_in_mix(engine, expected[dtype], seed), f"mix {seed}"
        if options == "preemption":
            assert engine.stats().num_preemptions > 0


def test_threads_do_not_change_a_bit(make, expected):
    with make(dtype="bfloat16", num_threads=1 if torch.get_num_threads() > 1 else 2) as engine:
        assert mixes.alone(engine) == expected["bfloat16"]


def test_what_would_promise_nothing_is_refused(make, monkeypatch):
    with pytest.raises(ConfigError, match="bfloat16 or float32"):
        make(dtype="float16")
    monkeypatch.setattr("rootlet.engine.build.backends.native_kernels", lambda: None)
    with pytest.raises(ConfigError, match="C kernels"):
        make()


def test_answers_differ_between_requests(expected):
    """Else equality would show nothing."""
    for answers in expected.values():
        assert all(a[0] != b[0] for a, b in itertools.combinations(answers, 2))
