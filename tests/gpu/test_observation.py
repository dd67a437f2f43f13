"""Watching an engine on the GPU: profiles, and statistics in the log."""

from __future__ import annotations

import json
import logging
import re

import pytest
import torch

from .tiny import build, random_prompt, saved

PROMPTS = [random_prompt(length, length) for length in (5, 70)]
GREEDY = {"temperature": 0, "max_new_tokens": 16, "ignore_eos": True}


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    with build(saved("llama", tmp_path_factory.mktemp("observation")), decode_log_interval=4) as engine:
        yield engine


def test_a_profile_holds_the_kernels_of_prefill_and_of_graphs(engine, tmp_path):
    """Twice, for the profiler's second start is not its first; and the tokens are those without it."""
    plain = engine.generate(input_ids=PROMPTS, sampling_params=GREEDY)  # records the graphs
    for _ in range(2):
        engine.flush_cache()
        engine.start_profile(tmp_path)
        profiled = engine.generate(input_ids=PROMPTS, sampling_params=GREEDY)
        events = json.loads(engine.stop_profile().read_text())["traceEvents"]
        assert [output.token_ids for output in profiled] == [output.token_ids for output in plain]
        assert any(event.get("name", "").startswith("aten::") for event in events)  # the host's side
        kernels = [event for event in events if event.get("cat") == "kernel"]
        # one step of prefill launches a dozen; sixteen steps, most of them recorded, hundreds
        assert len(kernels) > 16 * 12
        assert any("argmax" in event["name"] for event in kernels)
        assert all(event["dur"] >= 0 for event in kernels)
    assert len(list(tmp_path.iterdir())) == 2


def test_an_engine_on_the_cpu_records_no_gpu(engine, tmp_path):
    """The GPU is somebody else's then, and busy."""
    with build(engine.config.model_path, device="cpu") as other:
        other.start_profile(tmp_path)
        work = torch.ones(64, 64, device="cuda")
        other.generate(input_ids=PROMPTS[0], sampling_params=GREEDY | {"max_new_tokens": 2})
        assert (work @ work).sum().item() == 64**3
        events = json.loads(other.stop_profile().read_text())["traceEvents"]
    assert any(event.get("name", "").startswith("aten::") for event in events)
    assert not any(event.get("cat") == "kernel" for event in events)


def test_statistics_in_the_log(engine, caplog):
    with caplog.at_level(logging.INFO, logger="rootlet"):
        engine.generate(input_ids=PROMPTS, sampling_params=GREEDY | {"max_new_tokens": 40})
    lines = [record.getMessage() for record in caplog.records if "running" in record.getMessage()]
    assert len(lines) >= 9
    number = r"\d+(\.\d+)?"
    pattern = f"2 running, 0 waiting, token usage {number} %, {number} tokens/s, cache hit rate {number} %"
    assert all(re.fullmatch(pattern, line) for line in lines[1:-1]), lines
