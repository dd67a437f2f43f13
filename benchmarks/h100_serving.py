"""Streams under load, in process: W2's lengths, Poisson arrivals, every token to a coroutine of its own.

    python benchmarks/h100_serving.py                                   # L8B, three loads, some two minutes
    python benchmarks/h100_serving.py --loads 16:500 --out OUT --commit COMMIT
    python benchmarks/h100_serving.py --options '{"page_size": 64}'     # an engine option; nothing is written
    python benchmarks/h100_serving.py --quick --loads 20:60 --warm 60   # a tiny model on any device

A load is arrivals per second and requests, ``16:500``; ``inf:1000`` is all at once. All coroutines run in one
event loop and read ``async_generate(stream=True)``, greedy, end of sequence ignored. Lengths, token ids and
arrivals are the same in every run. ``--warm`` so many requests come all at once before, then none for
``--idle`` seconds, in which the engine records what streams meet.

- total, output_throughput: from the first arrival to the last token
- ttft: from a request's arrival to its first token in its coroutine
- itl: between two snapshots that reach a coroutine; one that brings several tokens is one gap
- tpot: of a request, (time of the last snapshot - time of the first) / (tokens - 1)
- owner: percent of the time of the engine's own thread, see ``owner_shares``

Percentiles are over all requests, itl over all gaps. Rows go where those of ``h100.py`` go.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import math
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from h100_results import RESULTS, Figure, Results, context, figure, number, table
from h100_workloads import ENGINE_OPTIONS, MODELS, Prompts, Requests, names, write_config
from owner_shares import watch

import rootlet

ARRIVALS = 1  # seed of the times between arrivals
WARM = 99  # seed of the ids of the requests before; loads have their positions
MOST = 1000  # requests of a load: so many lengths are drawn


@dataclass(frozen=True)
class Load:
    """So many requests, ``rate`` of them a second."""

    rate: float
    count: int

    @classmethod
    def of(cls, text: str) -> Load:
        """Read ``16:500``."""
        rate, _, count = text.partition(":")
        load = cls(float(rate), int(count))
        if not (load.rate > 0 and 0 < load.count <= MOST):
            raise ValueError(text)
        return load

    def __str__(self) -> str:
        return f"stream {self.rate:g}:{self.count}"

    def pauses(self) -> list[float]:
        """Seconds after each arrival."""
        draw = random.Random(ARRIVALS)
        return [0.0 if math.isinf(self.rate) else draw.expovariate(self.rate) for _ in range(self.count)]


@dataclass
class Reader:
    """What a coroutine saw: when its request arrived, and when how many tokens were there."""

    arrival: float
    times: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)

    @property
    def gaps(self) -> list[float]:
        """Seconds between snapshots."""
        return [after - before for before, after in zip(self.times, self.times[1:])]

    @property
    def per_token(self) -> float:
        """Seconds per token after the first snapshot."""
        return (self.times[-1] - self.times[0]) / (self.counts[-1] - 1)


async def serve(engine: rootlet.Engine, requests: Requests, pauses: Sequence[float]) -> list[Reader]:
    """Have the requests arrive one after the other; what each reader saw."""

    async def read(prompt: list[int], num_tokens: int) -> Reader:
        reader = Reader(time.perf_counter())
        params = {"temperature": 0, "max_new_tokens": num_tokens, "ignore_eos": True}
        async for output in await engine.async_generate(
            input_ids=prompt, sampling_params=params, stream=True
        ):
            reader.times.append(time.perf_counter())
            reader.counts.append(len(output.token_ids))
        if reader.counts[-1] != num_tokens:
            raise RuntimeError("The engine returned another length than asked for.")
        return reader

    tasks = []
    for prompt, num_tokens, pause in zip(requests.prompts, requests.output_lengths, pauses):
        tasks.append(asyncio.create_task(read(prompt, num_tokens)))
        if pause:
            await asyncio.sleep(pause)
    return await asyncio.gather(*tasks)


def figures(load: Load, readers: list[Reader], shares: dict[str, float]) -> list[Figure]:
    """The rows of a load."""
    wall = max(reader.times[-1] for reader in readers) - min(reader.arrival for reader in readers)
    values = {"total": wall, "output_throughput": sum(reader.counts[-1] for reader in readers) / wall}
    latencies = {
        "ttft": [reader.times[0] - reader.arrival for reader in readers],
        "itl": [gap for reader in readers for gap in reader.gaps],
        "tpot": [reader.per_token for reader in readers if reader.counts[-1] > 1],
    }
    for name, seconds in latencies.items():
        for percent in (50, 99):
            values[f"{name}_p{percent}"] = 1e3 * percentile(seconds, percent)
    values |= {f"owner_{part}": share for part, share in shares.items()}
    return [figure(str(load), metric, [value]) for metric, value in values.items()]


def percentile(values: list[float], percent: int) -> float:
    """The smallest value that more than ``percent`` of a hundred do not exceed."""
    return sorted(values)[min(len(values) - 1, percent * len(values) // 100)]


async def run(
    engine: rootlet.Engine, prompts: Prompts, args: argparse.Namespace, add: Callable[[list[Figure]], None]
) -> None:
    """All loads, one after the other in one event loop; each is added as soon as it is measured."""
    if args.warm:
        await serve(engine, prompts.mixed(WARM).first(args.warm), Load(math.inf, args.warm).pauses())
        await asyncio.sleep(args.idle)
    for seed, load in enumerate(args.loads):
        requests = prompts.mixed(seed).first(load.count)
        with watch(engine) as owner:
            readers = await serve(engine, requests, load.pauses())
        measured = figures(load, readers, owner.shares())
        print(f"{load}  " + "  ".join(f"{f.metric} {number(f.value)}" for f in measured), flush=True)
        add(measured)


def _loads(text: str) -> list[Load]:
    try:
        return [Load.of(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not loads as 16:500,inf:1000, up to {MOST}: {error}") from None


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=names(("L8B", "Q05B")), default=["L8B"], metavar="A,B")
    parser.add_argument("--loads", type=_loads, default="4:150,16:500,inf:1000", metavar="RATE:COUNT,...")
    parser.add_argument("--warm", type=int, default=MOST, help="requests before (default: %(default)s)")
    parser.add_argument("--idle", type=float, default=10, help="seconds after those (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="folder of h100.json (default: results/)")
    parser.add_argument("--commit", help="commit of the code (default: what git says)")
    parser.add_argument("--options", type=json.loads, default={}, help="engine options as JSON, to try out")
    parser.add_argument("--quick", action="store_true", help="a tiny model; written only with --out")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; the exit code."""
    args = _parse(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not args.quick:
        print("These loads need a CUDA GPU; torch sees none. --quick tries the script out on a CPU.")
        return 2
    out = args.out or (None if args.quick else RESULTS)
    results = Results(None if args.options else out, context(args.commit, device))
    options: dict[str, Any] = ENGINE_OPTIONS | args.options
    with tempfile.TemporaryDirectory() as root:
        for name in ["TINY"] if args.quick else args.models:
            prompts = Prompts(MODELS[name]["vocab_size"], 16 if args.quick else 1)
            folder = write_config(name, Path(root))
            with rootlet.Engine(str(folder), **options) as engine:
                asyncio.run(run(engine, prompts, args, partial(results.add, name)))
            gc.collect()  # the next engine goes by what is free
            if device.type == "cuda":
                torch.cuda.empty_cache()
    print("\n" + table(results.rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
