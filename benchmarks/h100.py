"""Rootlet on one H100 beside vLLM and SGLang: workloads W1 to W6 on the shapes and lengths the peers ran.

    python benchmarks/h100.py                                     # everything, about ten minutes
    python benchmarks/h100.py --models L8B --workloads W1,W5 --out /tmp/results --commit abc1234
    python benchmarks/h100.py --models Q05B --trace W1
    python benchmarks/h100.py --models L8B --where W2             # what the engine's own thread does
    python benchmarks/h100.py --add /tmp/results/h100.json        # take over rows measured elsewhere

Dummy bf16 weights, every engine option at its default, wall clock of the blocking ``generate`` call, medians.
Measured in the same run: the card's read bandwidth and GEMM rate, from which ``h100_floor`` derives the
least each workload can take. Small requests of every kind run before the first timed one. Where rows go is
said in ``h100_results``. A workload that fails is reported, the others go on, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from h100_floor import Ceilings, Costs
from h100_results import RESULTS, Figure, Results, context, figure, number, table, write_rows
from h100_start import time_starts
from h100_steps import time_step
from h100_trace import trace_decode
from h100_workloads import (
    ENGINE_OPTIONS,
    MODELS,
    REPEATS,
    WORKLOADS,
    Prompts,
    Requests,
    names,
    write_config,
)
from owner_shares import watch

import rootlet

OTHER_LENGTHS = 100  # added to the seeds of runs of other lengths, so that their ids are fresh


class ModelBench:
    """Runs the workloads of one model; keeps its engine from one to the next and replaces a dead one."""

    def __init__(self, name: str, folder: Path, ceilings: Ceilings, scale: int, options: dict) -> None:
        self._folder = folder
        self._costs = Costs.of(MODELS[name])
        self._ceilings = ceilings
        self._prompts = Prompts(MODELS[name]["vocab_size"], scale)
        self._context = MODELS[name]["max_position_embeddings"]
        self._options = ENGINE_OPTIONS | options
        self._engine: rootlet.Engine | None = None

    def run(self, workload: str, repeats: int) -> Iterator[Figure]:
        """Measure one workload."""
        yield from getattr(self, "_" + workload.lower())(repeats)

    def trace(self, workload: str) -> dict:
        """Trace steady decode with the requests of W1 or W5."""
        return trace_decode(self._ready(), self._prompts.of(workload, 0).prompts)

    def where(self, workload: str) -> str:
        """Where the time of the engine's own thread goes while a workload runs for the second time."""
        self._time(self._prompts.of(workload, 0), flush=True)
        with watch(self._ready(), functions=True) as owner:
            seconds = self._time(self._prompts.of(workload, 1), flush=True)
        return f"{seconds:.3f} s while being watched\n{owner.report()}"

    def close(self) -> None:
        """Free the engine, and what torch keeps of its memory: the next one goes by what is free."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    # ---- workloads ---------------------------------------------------------------------------------

    def _w1(self, repeats: int) -> Iterator[Figure]:
        full = self._prompts.single(0)
        steps = full.output_lengths[0] - 1
        first = [self._time(self._prompts.single(OTHER_LENGTHS + i, output_length=1)) for i in range(repeats)]
        runs = [
            (self._time(self._prompts.single(i)) - statistics.median(first)) / steps for i in range(repeats)
        ]
        floor = self._costs.decode_seconds(full, self._ceilings) / steps
        yield figure("W1", "decode", _ms(runs), 1e3 * floor)

    def _w2(self, repeats: int) -> Iterator[Figure]:
        runs = [self._time(self._prompts.mixed(i)) for i in range(repeats)]
        yield from self._throughput("W2", runs, self._prompts.mixed(0))
        _say(f"      {self._ready().stats()}")

    def _w3(self, repeats: int) -> Iterator[Figure]:
        runs = [self._time(self._prompts.shared_prefix(i), flush=True) for i in range(repeats)]
        yield figure("W3", "total", runs, self._floor(self._prompts.shared_prefix(0)))
        _say(f"      {self._ready().stats()}")

    def _w4(self, repeats: int) -> Iterator[Figure]:
        runs = [self._time(self._prompts.single(i, 32768, 1)) for i in range(repeats)]
        yield figure("W4", "ttft", runs, self._floor(self._prompts.single(0, 32768, 1)))

    def _w5(self, repeats: int) -> Iterator[Figure]:
        """``step`` is the median time between tokens 128 and 256 of one request, in runs of its own.

        A difference of a long and a short run is, for a small model, smaller than their scatter.
        """
        full, half = self._prompts.batch(0), self._prompts.batch(0, output_length=128)
        runs = [self._time(self._prompts.batch(i)) for i in range(repeats)]
        yield figure("W5", "total", runs, self._floor(full))
        first, last = half.output_lengths[0], full.output_lengths[0]
        steps = [
            time_step(self._ready(), self._prompts.batch(OTHER_LENGTHS + i, output_length=512), first, last)
            for i in range(repeats)
        ]
        floor = self._costs.decode_seconds(full, self._ceilings)
        floor -= self._costs.decode_seconds(half, self._ceilings)
        yield figure("W5", "step", _ms(steps), 1e3 * floor / (last - first))

    def _w6(self, repeats: int) -> Iterator[Figure]:
        self.close()  # the fresh process wants the card for itself
        prompt = self._prompts.single(0).prompts[0]
        for metric, runs in time_starts(self._folder, self._options, prompt, repeats).items():
            yield figure("W6", metric, runs)

    # ---- parts -------------------------------------------------------------------------------------

    def _throughput(self, workload: str, runs: list[float], requests: Requests) -> Iterator[Figure]:
        floor, tokens = self._floor(requests), sum(requests.output_lengths)
        yield figure(workload, "total", runs, floor)
        yield figure(workload, "output_throughput", [tokens / run for run in runs], tokens / floor)

    def _floor(self, requests: Requests) -> float:
        return self._costs.seconds(requests, self._ceilings)

    def _time(self, requests: Requests, *, flush: bool = False) -> float:
        """Seconds of the one blocking call."""
        engine = self._ready()
        if flush and not engine.flush_cache():
            raise RuntimeError("The cache could not be emptied: requests of an earlier run are still there.")
        return _generate(engine, requests)

    def _ready(self) -> rootlet.Engine:
        """The engine, built and warmed up if there is none that works."""
        try:
            if self._engine is not None:
                self._engine.stats()
                return self._engine
        except rootlet.RootletError:
            self.close()
        start = time.perf_counter()
        self._engine = rootlet.Engine(str(self._folder), **self._options)
        built = time.perf_counter()
        for requests in self._prompts.warm_up():
            if max(requests.input_lengths) < self._context:
                _generate(self._engine, requests)
        self._engine.flush_cache()
        _say(f"      engine built in {built - start:.1f} s, warmed up in {time.perf_counter() - built:.1f} s")
        _say(f"      {self._engine.get_server_info()}")
        return self._engine


def _generate(engine: rootlet.Engine, requests: Requests) -> float:
    params = [{"temperature": 0, "max_new_tokens": n, "ignore_eos": True} for n in requests.output_lengths]
    start = time.perf_counter()
    outputs = engine.generate(input_ids=requests.prompts, sampling_params=params)
    elapsed = time.perf_counter() - start
    if [len(output.token_ids) for output in outputs] != requests.output_lengths:
        raise RuntimeError("The engine returned other lengths than asked for.")
    return elapsed


def _ms(runs: list[float]) -> list[float]:
    return [1e3 * run for run in runs]


def _say(text: str) -> None:
    print(text, flush=True)


def _attempt(what: str, work: Callable[[], None]) -> bool:
    """Run ``work``; a failure is printed and the others go on."""
    try:
        work()
    except Exception:
        _say(f"{what} failed:\n{traceback.format_exc()}")
        return False
    return True


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=names(("L8B", "Q05B")), default=["L8B", "Q05B"], metavar="A,B")
    parser.add_argument("--workloads", type=names(tuple(WORKLOADS)), default=list(WORKLOADS), metavar="W1,W2")
    parser.add_argument("--repeats", type=int, help="of every workload (default: 2 or 3, as the peers)")
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="folder of h100.json (default: %(default)s)"
    )
    parser.add_argument("--commit", help="commit of the code (default: what git says)")
    parser.add_argument(
        "--options",
        type=json.loads,
        default={},
        help="engine options as JSON, to try out; nothing is written",
    )
    parser.add_argument("--trace", choices=("W1", "W5"), help="trace steady decode instead of timing")
    parser.add_argument(
        "--where", choices=("W1", "W2", "W3", "W4", "W5"), help="print what the engine's own thread does"
    )
    parser.add_argument("--quick", action="store_true", help="a tiny model, any device, nothing written")
    parser.add_argument("--add", type=Path, metavar="FILE", help="only add the rows of another h100.json")
    return parser.parse_args()


def main() -> int:
    """Run what was asked for; the exit code."""
    args = _parse()
    if args.add is not None:
        rows = json.loads(args.add.read_text())
        write_rows(args.out, rows)
        _say(table(rows))
        return 0
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not args.quick:
        _say("These workloads need a CUDA GPU; torch sees none. --quick tries the script out on a CPU.")
        return 2
    ceilings = Ceilings.measure(device)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    bandwidth, rate = ceilings.read_bytes_per_s / 1e9, ceilings.flops_per_s / 1e12
    _say(f"read {bandwidth:.0f} GB/s, bf16 GEMM {rate:.1f} TFLOP/s")
    written = not args.quick and not args.options
    results = Results(args.out if written else None, context(args.commit, device))
    complete = True
    with tempfile.TemporaryDirectory() as root:
        for name in ["TINY"] if args.quick else args.models:
            folder = write_config(name, Path(root))
            bench = ModelBench(name, folder, ceilings, 16 if args.quick else 1, args.options)
            complete &= _run_model(bench, name, args, results)
            bench.close()
    if results.rows:
        _say("\n" + table(results.rows))
    return 0 if complete else 1


def _run_model(bench: ModelBench, name: str, args: argparse.Namespace, results: Results) -> bool:
    if args.trace is not None:

        def trace() -> None:
            summary = bench.trace(args.trace)
            results.write_trace(name, args.trace, summary)
            _say(json.dumps(summary, indent=1))

        return _attempt(f"{name} trace {args.trace}", trace)
    if args.where is not None:
        return _attempt(f"{name} where {args.where}", lambda: _say(f"{name} {bench.where(args.where)}"))
    complete = True
    for workload in sorted(args.workloads, key=lambda name: (name != "W6", name)):  # W6 wants the card empty
        if workload == "W4" and MODELS[name]["max_position_embeddings"] <= 32768 and not args.quick:
            _say(f"{name} W4 left out: 32768 tokens and one more do not fit its context.")
            continue
        _say(f"{name} {workload}: {WORKLOADS[workload]}")

        def measure(workload: str = workload) -> None:
            figures = []
            for measured in bench.run(workload, args.repeats or REPEATS[workload]):
                figures.append(measured)
                _say(f"      {measured.metric}: {' '.join(map(number, measured.runs))}")
            results.add(name, figures)

        complete &= _attempt(f"{name} {workload}", measure)
    return complete


if __name__ == "__main__":
    sys.exit(main())
