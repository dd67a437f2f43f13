"""What reading tokens as they come costs over waiting, with a model so small that the host is all there is.

    python benchmarks/streams.py [--requests 150] [--tokens 200] [--repeats 5] [--out results/streams.json]

The same requests are waited for (``generate``), read as one stream by one thread, and each read as a stream
of its own by a coroutine. Repeats alternate; ratios are of the medians. Needs two cores and no model.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from rootlet import Engine

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
}


def requests(count: int, tokens: int) -> dict[str, Any]:
    """What every way of reading asks for."""
    prompts = [[5 + i % 90, 9, 40] * 4 for i in range(count)]
    params = {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True}
    return {"input_ids": prompts, "sampling_params": params}


def blocking(engine: Engine, asked: dict[str, Any]) -> None:
    """Wait for all."""
    engine.generate(**asked)


def one_reader(engine: Engine, asked: dict[str, Any]) -> None:
    """One thread reads the stream of all."""
    for _ in engine.generate(**asked, stream=True):
        pass


def coroutines(engine: Engine, asked: dict[str, Any]) -> None:
    """A coroutine for each request reads its stream."""

    async def read(prompt: list[int]) -> None:
        async for _ in await engine.async_generate(**asked | {"input_ids": prompt}, stream=True):
            pass

    async def read_all() -> None:
        await asyncio.gather(*(read(prompt) for prompt in asked["input_ids"]))

    asyncio.run(read_all())


WAYS = (blocking, one_reader, coroutines)


def measure(args: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of each repeat, by way of reading."""
    asked = requests(args.requests, args.tokens)
    seconds: dict[str, list[float]] = {way.__name__: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(CONFIG))
        options = {"load_format": "dummy", "skip_tokenizer_init": True, "dtype": "float32", "device": "cpu"}
        room = args.requests * (args.tokens + 32)
        with Engine(folder, max_total_tokens=room, disable_overlap_schedule=False, **options) as engine:
            engine.generate(**asked)
            for _ in range(args.repeats):
                for way in WAYS:
                    began = time.perf_counter()
                    way(engine, asked)
                    seconds[way.__name__].append(time.perf_counter() - began)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=150)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="add the figures to this JSON file")
    args = parser.parse_args()
    seconds = measure(args)
    base = statistics.median(seconds["blocking"])
    for name, runs in seconds.items():
        middle = statistics.median(runs)
        print(
            f"{name:12} {middle:6.2f} s  {middle / base:5.2f} x  {1e3 * middle / args.tokens:6.2f} ms a token"
        )
    if args.out is not None:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
        )
        row = {
            "commit": commit.stdout.strip(),
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "cpu": f"{platform.machine()}, {os.cpu_count()} cores",
            "python": platform.python_version(),
            "torch": torch.__version__,
            "requests": args.requests,
            "tokens": args.tokens,
            "seconds": {name: [round(value, 3) for value in runs] for name, runs in seconds.items()},
        }
        rows = json.loads(args.out.read_text()) if args.out.exists() else []
        args.out.write_text(json.dumps([*rows, row], indent=1) + "\n")


main()
