"""Reading ahead and sorting saves computation: counted on the real engine, with a tiny random model."""

from __future__ import annotations

import json
import random

import pytest

from rootlet import Engine, run_jobs
from rootlet.engine.jobs.identity import identify
from rootlet.engine.jobs.input_file import RawLine
from rootlet.engine.jobs.lines import parse_line
from rootlet.engine.jobs.read_ahead import in_order
from rootlet.engine.jobs.request import JobDefaults

from .files import read, write

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "vocab_size": 256,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.fixture
def tiny_engine(tmp_path):
    """A random model that speaks in token ids, with a pool of 512 tokens."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    options = {"load_format": "dummy", "skip_tokenizer_init": True, "dtype": "float32", "random_seed": 0}
    with Engine(str(folder), max_total_tokens=512, max_running_requests=2, **options) as engine:
        yield engine


def test_prefix_order_saves_computation(tmp_path, tiny_engine):
    """Twelve prefixes of 100 tokens in turn, in a pool that holds four: each is gone when it returns."""
    rng = random.Random(0)
    prefixes = [[rng.randrange(3, 256) for _ in range(100)] for _ in range(12)]
    write(tmp_path / "in.jsonl", [{"prompt": [*prefixes[i % 12], 3 + i]} for i in range(96)])
    hit_rate, tokens = {}, {}
    for order in ("input", "prefix"):
        tiny_engine.flush_cache()
        output = tmp_path / f"{order}.jsonl"
        summary = run_jobs(
            tmp_path / "in.jsonl",
            output,
            engine=tiny_engine,
            sampling_params={"temperature": 0, "max_new_tokens": 4},
            order=order,
            max_in_flight=4,
            progress=False,
        )
        hit_rate[order] = summary.cache_hit_rate
        tokens[order] = {r["index"]: r["token_ids"] for r in read(output)}
    assert hit_rate["input"] < 0.05
    assert hit_rate["prefix"] > 0.8  # 7 of 8 is what there is to share
    assert tokens["input"] == tokens["prefix"]


def test_text_lines_without_a_tokenizer_become_error_records(job, tiny_engine):
    lines = [
        {"id": "text", "prompt": "x"},
        {"id": "chat", "messages": [{"role": "user", "content": "x"}]},
        {"custom_id": "openai", "url": "/v1/completions", "body": {"prompt": [5]}},
        {"id": "ids", "prompt": [5]},
    ]
    _, records, _ = job(lines, engine=tiny_engine)
    errors = {r.get("custom_id") or r["id"]: r["error"] and r["error"]["code"] for r in records}
    assert errors == dict.fromkeys(("text", "chat", "openai"), "invalid_request") | {"ids": None}


def lines_of(prompts):
    for index, prompt in enumerate(prompts):
        raw = RawLine(index, json.dumps({"prompt": prompt}).encode())
        yield parse_line(identify(raw), JobDefaults({}, 0))


@pytest.mark.parametrize(("window", "window_bytes", "held"), [(16, 10**9, 16), (1000, 400, 20)])
def test_no_more_than_a_window_is_held(window, window_bytes, held):
    """Lines of 20 bytes: the input may be endless and lines may be long."""
    read_so_far = 0

    def endless():
        nonlocal read_so_far
        for line in lines_of(f"{n % 7:04d}{n:04d}" for n in iter(int, 1)):
            read_so_far += 1
            yield line

    for given, _ in enumerate(in_order(endless(), "prefix", window, window_bytes), 1):
        assert given <= read_so_far <= given + held
        if given == 200:
            break


def test_every_line_is_given_once_and_windows_keep_their_place():
    rng = random.Random(1)
    prompts = [f"{rng.randrange(9)} {i}" for i in range(100)]
    indices = [line.identity.index for line in in_order(lines_of(prompts), "prefix", 30)]
    assert [sorted(indices[i : i + 30]) for i in range(0, 100, 30)] == [
        list(range(i, min(i + 30, 100))) for i in range(0, 100, 30)
    ]
    assert [line.identity.index for line in in_order(lines_of(prompts), "input")] == list(range(100))
