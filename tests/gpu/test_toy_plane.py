"""A KV kind of a model's own on a GPU: beside the kernels of ordinary layers, in recorded steps too."""

from __future__ import annotations

import pytest

from ..engine.test_toy_plane import check, toy  # noqa: F401


@pytest.mark.parametrize(
    "options",
    [{}, {"disable_cuda_graph": True}, {"page_size": 4, "chunked_prefill_size": 5, "cuda_graph_max_bs": 2}],
    ids=str,
)
def test_tokens(toy, options):  # noqa: F811
    check(toy, device="cuda", **options)


def test_preempted_requests_compute_both_planes_again(toy):  # noqa: F811
    assert check(toy, device="cuda", max_total_tokens=44, page_size=4).num_preemptions > 0
