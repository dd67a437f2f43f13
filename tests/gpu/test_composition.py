"""Every pair of features on the GPU: graphs, overlap and the Triton kernels against a plain run.

The plain run has none of them: torch's attention, kernel by kernel, each step waited for. There are no near
ties in the sequences of ``engine/composition.py``: a greedy token's logit is 2e-3 above the next, a drawn
one's 4e-5 from any other, random numbers lie 8e-5 from a border, and fp32 sums differ by 1e-5 at most.
"""

from __future__ import annotations

import pytest

from ..engine.composition import PAIRS, Engines, check_pair

PLAIN = {"attention_backend": "torch", "disable_overlap_schedule": True}


@pytest.fixture(scope="module")
def engines(smollm2_gguf, tmp_path_factory):
    folder = tmp_path_factory.mktemp("composition")
    options = {"device": "cuda", "attention_backend": "triton"}
    with Engines(smollm2_gguf, folder, plain=PLAIN, **options) as engines:
        info = engines.idle().get_server_info()
        assert info["disable_overlap_schedule"] is False
        assert info["disable_cuda_graph"] is False
        yield engines


@pytest.mark.parametrize("pair", PAIRS, ids=" + ".join)
def test_tokens_equal_those_of_a_plain_run(pair, engines):
    check_pair(pair, engines)
