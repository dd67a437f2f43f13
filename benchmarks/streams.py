"""What reading tokens as they come costs over waiting, with a model so small that the host is all there is.

    python benchmarks/streams.py [--requests 150] [--tokens 200] [--repeats 5] [--out results/streams.json]

The same requests are waited for (``generate``), read as one stream by one thread, and each read as a stream
of its own by a coroutine. Repeats alternate; ratios are of the medians. Needs two cores and no model. Where
others use the cores, ratios scatter; the CPU time of the reading thread does less. ``snapshots``: how many
were read of each token.
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
from typing import Any, NamedTuple

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


def blocking(engine: Engine, asked: dict[str, Any]) -> int:
    """Wait for all. Returns the outputs read, as the other ways do."""
    return len(engine.generate(**asked))


def one_reader(engine: Engine, asked: dict[str, Any]) -> int:
    """One thread reads the stream of all."""
    return sum(1 for _ in engine.generate(**asked, stream=True))


def coroutines(engine: Engine, asked: dict[str, Any]) -> int:
    """A coroutine for each request reads its stream."""

    async def read(prompt: list[int]) -> int:
        count = 0
        async for _ in await engine.async_generate(**asked | {"input_ids": prompt}, stream=True):
            count += 1
        return count

    async def read_all() -> int:
        return sum(await asyncio.gather(*(read(prompt) for prompt in asked["input_ids"])))

    return asyncio.run(read_all())


WAYS = (blocking, one_reader, coroutines)


class Run(NamedTuple):
    """What one repeat took: seconds, those of CPU time of the reading thread, and outputs read."""

    seconds: float
    reader: float
    outputs: int


def measure(args: argparse.Namespace) -> dict[str, list[Run]]:
    """The repeats, by way of reading."""
    asked = requests(args.requests, args.tokens)
    runs: dict[str, list[Run]] = {way.__name__: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(CONFIG))
        options = {"load_format": "dummy", "skip_tokenizer_init": True, "dtype": "float32", "device": "cpu"}
        room = args.requests * (args.tokens + 32)
        with Engine(folder, max_total_tokens=room, disable_overlap_schedule=False, **options) as engine:
            engine.generate(**asked)
            for _ in range(args.repeats):
                for way in WAYS:
                    began, reader = time.perf_counter(), time.thread_time()
                    outputs = way(engine, asked)
                    took = time.perf_counter() - began
                    runs[way.__name__].append(Run(took, time.thread_time() - reader, outputs))
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=150)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="add the figures to this JSON file")
    args = parser.parse_args()
    measured = measure(args)
    base = statistics.median(run.seconds for run in measured["blocking"])
    count = args.requests * args.tokens
    for name, runs in measured.items():
        middle, reader, outputs = (statistics.median(column) for column in zip(*runs))
        print(
            f"{name:12} {middle:6.2f} s  {middle / base:5.2f} x  {1e3 * middle / args.tokens:6.2f} ms a token"
            f"  reader {1e6 * reader / count:5.2f} us a token  snapshots {outputs / count:5.3f}"
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
            "load": os.getloadavg()[0],
            "seconds": {name: [round(run.seconds, 3) for run in runs] for name, runs in measured.items()},
            "reader_us": {
                name: [round(1e6 * run.reader / count, 2) for run in runs] for name, runs in measured.items()
            },
            "snapshots": {
                name: [round(run.outputs / count, 3) for run in runs] for name, runs in measured.items()
            },
        }
        rows = json.loads(args.out.read_text()) if args.out.exists() else []
        args.out.write_text(json.dumps([*rows, row], indent=1) + "\n")


main()
