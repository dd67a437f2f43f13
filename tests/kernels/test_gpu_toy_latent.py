"""The toy kind's attention as a kernel: against its torch plan, and in the recorded steps of an engine."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("supported_triton")

import triton
import triton.language as tl
from replayed_graphs import use_gpu_steps

from ..engine.test_toy_plane import NUM_TOKENS, WIDTH, LatentPlan, check, toy  # noqa: F401
from ..models.hf import one_thread  # noqa: F401

BLOCK = 16


@triton.jit
def _attend_kernel(
    out_ptr,
    q_ptr,
    latents_ptr,
    pages_ptr,
    slots_ptr,
    lens_ptr,
    max_pages,
    scale,
    PAGE_SIZE: tl.constexpr,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One head of one token."""
    token, head = tl.program_id(0), tl.program_id(1)
    dims = tl.arange(0, WIDTH)
    place = (token * HEADS + head) * WIDTH + dims
    q = tl.load(q_ptr + place)
    table = pages_ptr + tl.load(slots_ptr + token) * max_pages
    length = tl.load(lens_ptr + token)
    top, total = -1e30, 0.0
    acc = tl.zeros([WIDTH], dtype=tl.float32)
    for first in range(0, length, BLOCK):
        keys = first + tl.arange(0, BLOCK)
        seen = keys < length
        rows = tl.load(table + keys // PAGE_SIZE, mask=seen, other=0) * PAGE_SIZE + keys % PAGE_SIZE
        latents = tl.load(latents_ptr + rows[:, None] * WIDTH + dims[None, :], mask=seen[:, None], other=0.0)
        scores = tl.where(seen, tl.sum(latents * q[None, :], 1) * scale, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 0))
        weights, shrink = tl.exp(scores - new_top), tl.exp(top - new_top)
        total = total * shrink + tl.sum(weights, 0)
        acc = acc * shrink + tl.sum(weights[:, None] * latents, 0)
        top = new_top
    tl.store(out_ptr + place, acc / tl.where(total == 0, 1.0, total))


def attend(plan, q, latents):
    """:meth:`LatentPlan.attend` by the kernel."""
    tokens, heads, width = q.shape
    q = q.contiguous()
    out = torch.empty_like(q)
    if tokens:
        _attend_kernel[tokens, heads](
            out, q, latents, plan.pages, plan.slots, plan.lens, plan.pages.shape[1], width**-0.5,
            PAGE_SIZE=latents.shape[1], HEADS=heads, WIDTH=width, BLOCK=BLOCK,
        )  # fmt: skip
    return out


@pytest.mark.parametrize("page_size", [1, 4, 16])
def test_the_kernel_computes_what_the_plan_says(page_size):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    latents = torch.randn(80, page_size, WIDTH, device=device)
    pages = torch.randint(1, 80, (3, -(-40 // page_size)), dtype=torch.int32, device=device)
    slots = torch.tensor([2, 1, 1, 2], dtype=torch.int32, device=device)
    lens = torch.tensor([40, 1, 17, 16], dtype=torch.int32, device=device)
    q = torch.randn(4, 3, WIDTH, device=device)
    plan = LatentPlan(pages, slots, lens)
    torch.testing.assert_close(attend(plan, q, latents), plan.attend(q, latents))


def test_tokens_in_recorded_steps(toy, monkeypatch):  # noqa: F811
    monkeypatch.setattr(LatentPlan, "attend", attend)
    if torch.cuda.is_available():
        check(toy, device="cuda")
        return
    graphs = use_gpu_steps(monkeypatch)
    check(toy, disable_overlap_schedule=False, cuda_graph_max_bs=4)
    [made] = graphs
    # the kind plans no recorded steps of several tokens a row
    assert [recorded for _, _, recorded in made.replays] == [False] + [True] * (NUM_TOKENS - 1)
