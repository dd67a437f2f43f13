"""What flashinfer is asked to compute, against the torch reference; on a GPU its kernels too."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch_planner import TorchPlanner

pytest.importorskip("supported_triton")

from rootlet.cache.slot_tables import SlotTables
from rootlet.engine.steps.flashinfer_planner import FlashInferPlanner
from rootlet.engine.steps.layout import StepLayout
from rootlet.errors import ConfigError, ModelError
from rootlet.kernels.attention import paged_attention_reference
from rootlet.kernels.gpu.flashinfer import (
    PagedRows,
    Wrappers,
    check_supported,
    import_library,
    page_runs,
    workspace_bytes,
)
from rootlet.kernels.scoring import Scoring

SCORINGS = [
    Scoring(0.2),
    Scoring(0.3, window=5),
    Scoring(0.2, soft_cap=8.0),
    Scoring(0.2, window=1, soft_cap=3.0),
]


def planned(case, num_decodes, planner, device="cpu"):
    """The plan of a batch with the case's rows, through the slot tables."""
    page_size, table = case.plan.page_size, case.plan.page_table
    tables = SlotTables(len(case.rows) + 2, table.shape[1] * page_size, page_size, device)
    slots = [len(case.rows) + 1 - row for row in range(len(case.rows))]
    for row, slot in enumerate(slots):
        tables.pages[slot] = table[row].to(device)
    counts, kv_lens = np.array(case.rows, dtype=np.int32).T
    layout = replace(
        StepLayout.padding(len(slots), 1),
        slots=np.array(slots, dtype=np.int32),
        starts=kv_lens - counts,
        counts=counts,
        num_decodes=num_decodes,
        only_decodes=False,
    )
    return FlashInferPlanner(tables.pages, page_size, planner).plan(layout)


@pytest.mark.parametrize("page_size", [1, 16, 64])
@pytest.mark.parametrize(
    ("num_decodes", "rows"),
    [
        (3, [(1, 1), (1, 64), (1, 65)]),
        (0, [(5, 5), (16, 33), (2, 128), (1, 7)]),
        (2, [(1, 130), (1, 16), (64, 64), (3, 80), (17, 17)]),
    ],
    ids=["decodes", "prefills", "mixed"],
)
def test_every_row_attends_to_its_own_pages(paged_case, page_size, num_decodes, rows):
    case = paged_case(rows, page_size=page_size, heads=(6, 2, 8))
    plan = planned(case, num_decodes, TorchPlanner())
    for scoring in SCORINGS:
        out = plan.attend(case.q, case.k, case.v, scoring)
        want = paged_attention_reference(case.q, case.k, case.v, case.plan, scoring)
        torch.testing.assert_close(out, want, atol=1e-5, rtol=0)


def test_layers_that_score_alike_share_a_plan(paged_case):
    case = paged_case([(1, 9), (4, 20)], page_size=16, heads=(2, 1, 8))
    planner = TorchPlanner()
    plan = planned(case, 1, planner)
    for _ in range(3):
        for scoring in SCORINGS:
            plan.attend(case.q, case.k, case.v, scoring)
    assert planner.planned == {(decodes, s): 1 for decodes in (True, False) for s in SCORINGS}


def test_a_scoring_that_it_cannot_be_told_of_is_refused(paged_case):
    case = paged_case([(1, 9)], page_size=16, heads=(2, 1, 8))
    with pytest.raises(ModelError, match=r"'flashinfer' does not know slopes.* Known: soft_cap, window"):
        planned(case, 1, TorchPlanner()).attend(case.q, case.k, case.v, Scoring(0.2, slopes=(1.0, 0.5)))


def test_page_runs():
    starts, last, columns = page_runs(np.array([1, 16, 17, 40], dtype=np.int32), 16)
    assert starts.tolist() == [0, 1, 2, 4, 7]
    assert last.tolist() == [1, 16, 1, 8]
    assert columns.tolist() == [0, 0, 0, 1, 0, 1, 2]


def test_the_workspace_holds_every_part():
    """Tiles of 128 rows of 32 heads with 8 for keys, 128 wide and a sum, on 132 multiprocessors."""
    tiles = 2 * 132 // 8  # (tile, part) pairs of one kv head that fit on the GPU
    assert workspace_bytes(4, 128, 132) >= 32 * tiles * 128 * 128 * 4 + 32 * tiles * 128 * 4 + 32


def test_a_missing_package_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "flashinfer", None)  # what an import of it then raises is ImportError
    with pytest.raises(ConfigError, match="pip install 'flashinfer-python"):
        import_library()


@pytest.mark.parametrize("head_dim", [16, 80, 96, 512])
def test_other_heads_are_refused(head_dim):
    with pytest.raises(ConfigError, match=rf"64, 128, 256.*{head_dim}"):
        check_supported(head_dim, torch.bfloat16)


def test_fp32_is_refused():
    for dtype in (torch.bfloat16, torch.float16):
        check_supported(64, dtype)
    with pytest.raises(ConfigError, match=r"bfloat16 or float16.*float32"):
        check_supported(64, torch.float32)


# head_dim, window, soft cap; each is a pair of kernels to compile, one for decodes and one for the others
ON_A_GPU = [(64, None, None), (64, 40, None), (128, None, None), (256, 40, 8.0)]
HEADS = (6, 2)


@pytest.fixture(scope="module")
def wrappers():
    """Wrappers for each head size. All kernels are compiled side by side: minutes, if no cache has them."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    pytest.importorskip("flashinfer", reason="needs the package flashinfer-python")
    device = torch.device("cuda")
    table = torch.zeros((1, 4), dtype=torch.int32, device=device)

    def compile_kernels(head_dim, window, soft_cap, q_starts):
        rows = PagedRows.of(table, np.array([0]), np.array([20]), 16, q_starts)
        scoring = Scoring(1.0, window, soft_cap)
        Wrappers(*HEADS, head_dim, torch.bfloat16, device).plan(rows, scoring)

    with ThreadPoolExecutor(2 * len(ON_A_GPU)) as threads:
        kinds = (None, np.array([0, 5], dtype=np.int32))
        for done in [threads.submit(compile_kernels, *case, kind) for case in ON_A_GPU for kind in kinds]:
            done.result()
    return {dim: Wrappers(*HEADS, dim, torch.bfloat16, device) for dim in (64, 128, 256)}


@pytest.mark.parametrize("page_size", [1, 16, 64])
@pytest.mark.parametrize(("head_dim", "window", "soft_cap"), ON_A_GPU)
def test_the_real_kernels(paged_case, wrappers, head_dim, window, soft_cap, page_size):
    """Decodes, prefills and both, planned in a row by the same wrappers; off by bf16 rounding at most."""
    for num_decodes, rows in (
        (3, [(1, 1), (1, 64), (1, 700)]),
        (0, [(5, 5), (16, 33), (300, 700), (1, 7)]),
        (2, [(1, 130), (1, 16), (64, 64), (3, 80), (17, 17), (130, 1000)]),
    ):
        case = paged_case(rows, page_size=page_size, heads=(*HEADS, head_dim), dtype=torch.bfloat16)
        plan = planned(case, num_decodes, wrappers[head_dim], "cuda")
        scoring = Scoring(head_dim**-0.5, window, soft_cap)
        out = plan.attend(case.q.cuda(), case.k.cuda(), case.v.cuda(), scoring).cpu().float()
        want = paged_attention_reference(case.q, case.k, case.v, case.plan, scoring).float()
        assert (out - want).abs().max() < 1.5e-2 * want.abs().max()
