"""Truncation on request, statistics in the log, profiles."""

from __future__ import annotations

import json
import logging
import re

import pytest

import rootlet
from rootlet.errors import ConfigError, ProfileError, RequestTooLongError

GREEDY = {"temperature": 0, "ignore_eos": True}


def build(tiny_model, **options):
    options = {"max_total_tokens": 512, "context_length": 64, "page_size": 4, "random_seed": 0} | options
    return rootlet.Engine(tiny_model, load_format="dummy", skip_tokenizer_init=True, device="cpu", **options)


def test_prompts_too_long_are_cut_on_request(tiny_model, caplog):
    prompt = list(range(5, 85))
    with build(tiny_model, allow_auto_truncate=True) as engine:
        with caplog.at_level(logging.WARNING, logger="rootlet"):
            cut = engine.generate(input_ids=prompt, sampling_params=GREEDY | {"max_new_tokens": 10})
            filled = engine.generate(input_ids=prompt, sampling_params=GREEDY | {"max_new_tokens": None})
        plain = engine.generate(input_ids=prompt[:54], sampling_params=GREEDY | {"max_new_tokens": 10})
        with pytest.raises(RequestTooLongError):  # no prompt leaves room for that
            engine.generate(input_ids=prompt, sampling_params=GREEDY | {"max_new_tokens": 64})
    assert (cut.prompt_tokens, cut.completion_tokens) == (54, 10)
    assert (filled.prompt_tokens, filled.completion_tokens) == (63, 1)
    assert cut.token_ids == plain.token_ids
    assert [record.getMessage() for record in caplog.records] == [
        "A prompt of 80 tokens was cut to its first 54 (allow_auto_truncate=True)",
        "A prompt of 80 tokens was cut to its first 63 (allow_auto_truncate=True)",
    ]


def test_a_small_pool_cuts_too(tiny_model):
    with build(tiny_model, allow_auto_truncate=True, max_total_tokens=32) as engine:
        output = engine.generate(input_ids=list(range(5, 55)), sampling_params=GREEDY | {"max_new_tokens": 8})
    assert (output.prompt_tokens, output.completion_tokens) == (25, 8)


def test_statistics_in_the_log(tiny_model, caplog):
    with build(tiny_model, decode_log_interval=4) as engine, caplog.at_level(logging.INFO, logger="rootlet"):
        engine.generate(input_ids=[[5, 6, 7]] * 3, sampling_params=GREEDY | {"max_new_tokens": 17})
    lines = [record.getMessage() for record in caplog.records if "running" in record.getMessage()]
    assert len(lines) == 4
    number = r"\d+(\.\d+)?"
    pattern = f"3 running, 0 waiting, token usage {number} %, {number} tokens/s, cache hit rate {number} %"
    assert all(re.fullmatch(pattern, line) for line in lines[1:])
    with build(tiny_model) as engine:
        caplog.clear()
        engine.generate(input_ids=[5, 6, 7], sampling_params=GREEDY | {"max_new_tokens": 8})
    assert not caplog.records
    with pytest.raises(ConfigError, match="decode_log_interval"):
        build(tiny_model, decode_log_interval=0)


def test_a_profile_holds_the_steps_between_start_and_stop(tiny_model, tmp_path):
    with build(tiny_model) as engine:
        with pytest.raises(ProfileError, match="start_profile"):
            engine.stop_profile()
        engine.start_profile(tmp_path / "new")
        with pytest.raises(ProfileError, match="already"):
            engine.start_profile(tmp_path)
        engine.generate(input_ids=[5, 6, 7], sampling_params=GREEDY | {"max_new_tokens": 3})
        trace = engine.stop_profile()
        engine.start_profile(tmp_path / "new")
        assert engine.stop_profile() != trace
    assert trace.parent == tmp_path / "new"
    names = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
    assert any(name.startswith("aten::") for name in names if name)
