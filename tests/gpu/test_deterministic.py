"""``deterministic=True`` on the GPU: 50 random mixes, and no bit of any answer differs."""

from __future__ import annotations

from functools import cache

import pytest

import rootlet
from rootlet.errors import ConfigError

from ..support import mixes
from .tiny import CONTEXT, saved

ENGINES = {
    "defaults": {},
    "eager, pages of 16, chunks of 50": {
        "disable_cuda_graph": True,
        "page_size": 16,
        "chunked_prefill_size": 50,
    },
    "no cache, no overlap": {"disable_radix_cache": True, "disable_overlap_schedule": True},
    "preemption": {"max_total_tokens": 320, "page_size": 16, "chunked_prefill_size": 32},
    "real model": {},
}
MIXES = 10  # of each


@pytest.fixture(scope="module")
def make(tmp_path_factory, request):
    folder = saved("llama-head-128", tmp_path_factory.mktemp("models"))

    def make(name: str, **options) -> rootlet.Engine:
        options = (
            {"max_total_tokens": 16_384, "device": "cuda", "deterministic": True} | ENGINES[name] | options
        )
        real = name == "real model"
        options |= {"device": "cuda", "dtype": "bfloat16", "context_length": CONTEXT}
        path = str(request.getfixturevalue("smollm2_gguf")) if real else folder
        return rootlet.Engine(path, skip_tokenizer_init=True, step_by_hand=True, **options)

    return make


@pytest.fixture(scope="module")
def expected(make):
    """Each request alone, in the plainest engine, so that all others are held against one."""

    @cache
    def answers(name: str) -> list[tuple]:
        with make(name, disable_cuda_graph=True, disable_radix_cache=True) as engine:
            return mixes.alone(engine)

    return answers


@pytest.mark.parametrize("name", ENGINES)
def test_no_mix_changes_a_bit(name, make, expected):
    answers = expected("real model" if name == "real model" else "defaults")
    with make(name) as engine:
        first = MIXES * list(ENGINES).index(name)  # no mix is drawn twice
        for seed in range(first, first + MIXES):
            assert not mixes.wrong_in_mix(engine, answers, seed), f"mix {seed}"
        if name == "preemption":
            assert engine.stats().num_preemptions > 0


def test_kernels_of_others_are_refused(make):
    with pytest.raises(ConfigError, match="attention_backend"):
        make("defaults", attention_backend="torch")
