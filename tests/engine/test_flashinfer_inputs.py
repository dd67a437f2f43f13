"""Steps as the scheduler makes them, planned for flashinfer: the same tokens as with our own plans."""

from __future__ import annotations

import pytest
from torch_planner import TorchPlanner

pytest.importorskip("supported_triton")

import rootlet
from rootlet.engine.build import backends
from rootlet.engine.steps.flashinfer_planner import FlashInferPlanner

from ..gpu.tiny import generate, requests
from ..models.hf import build_hf

# 120 output tokens behind prompts of up to 301 tokens, many of which share their beginning
PROMPTS, LENGTHS = (part[:20] for part in requests())


def planner(pages, page_size):
    """Flashinfer's plan in the CPU's inputs, which the torch reference stands in for."""
    return FlashInferPlanner(pages, page_size, TorchPlanner())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    build_hf("Mistral", max_position_embeddings=1024, sliding_window=40).save_pretrained(path)
    return str(path)


def run(folder, **options):
    """(tokens, preemptions) of the second of two rounds: its prompts are all cached."""
    options = {"max_total_tokens": 16_384, "skip_tokenizer_init": True} | options
    with rootlet.Engine(folder, device="cpu", dtype="float32", **options) as engine:
        generate(engine, PROMPTS, LENGTHS)
        return generate(engine, PROMPTS, LENGTHS), engine.stats().num_preemptions


@pytest.fixture(scope="module")
def expected(folder):
    return run(folder)[0]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"disable_overlap_schedule": False},
        {"disable_overlap_schedule": False, "chunked_prefill_size": 33, "page_size": 64},
        {"disable_overlap_schedule": False, "chunked_prefill_size": 6, "page_size": 1},
        {"disable_overlap_schedule": False, "max_total_tokens": 640},
    ],
    ids=lambda options: ",".join(f"{k}={v}" for k, v in options.items()) or "defaults",
)
def test_the_same_tokens(folder, expected, monkeypatch, options):
    """Chunks, mixed steps, prefix hits, copied pages, a step in flight; with little memory, preemption."""
    monkeypatch.setattr(backends, "PagedPlanner", planner)
    tokens, num_preemptions = run(folder, **options)
    assert tokens == expected
    assert (num_preemptions > 0) == ("max_total_tokens" in options)
