"""Rootlet on one H100 beside vLLM and SGLang: workloads W1 to W6 on the shapes and lengths the peers ran.

    python benchmarks/h100.py                                     # everything, about ten minutes
    python benchmarks/h100.py --models L8B --workloads W1,W5 --out /tmp/results --commit abc1234
    python benchmarks/h100.py --models Q05B --trace W1
    python benchmarks/h100.py --add /tmp/results/h100.json        # take over rows measured elsewhere

Dummy bf16 weights, every engine option at its default, wall clock of the blocking ``generate`` call, medians.
Measured in the same run: the card's read bandwidth and GEMM rate, from which ``h100_floor`` derives the
least each workload can take. Small requests of every kind run before the first timed one.
``h100.json`` holds the latest row of each (model, workload, metric), ``h100_history.jsonl`` every row ever
written. ``ratio`` above 1: we are ahead of the best peer. A workload that fails is reported, the others
go on, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from h100_floor import Ceilings, Costs
from h100_start import time_starts
from h100_trace import trace_decode
from h100_workloads import MODELS, REPEATS, TARGETS, WORKLOADS, Prompts, Requests, Target, write_config

import rootlet

RESULTS = Path(__file__).parent / "results"
ENGINE_OPTIONS = {"load_format": "dummy", "skip_tokenizer_init": True, "dtype": "bfloat16"}
OTHER_LENGTHS = 100  # added to the seeds of the shorter runs that are subtracted, so that their ids are fresh
UNITS = {
    "decode": "ms/token",
    "step": "ms",
    "output_throughput": "tok/s",
}


@dataclass(frozen=True)
class Figure:
    """A measured value, the single runs it comes from and the least it could be."""

    workload: str
    metric: str
    value: float
    runs: list[float]
    floor: float | None = None


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
        requests = self._prompts.single(0) if workload == "W1" else self._prompts.batch(0)
        return trace_decode(self._ready(), requests.prompts)

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
        yield _figure("W1", "decode", _ms(runs), 1e3 * floor)

    def _w2(self, repeats: int) -> Iterator[Figure]:
        runs = [self._time(self._prompts.mixed(i)) for i in range(repeats)]
        yield from self._throughput("W2", runs, self._prompts.mixed(0))
        _say(f"      {self._ready().stats()}")

    def _w3(self, repeats: int) -> Iterator[Figure]:
        runs = [self._time(self._prompts.shared_prefix(i), flush=True) for i in range(repeats)]
        yield _figure("W3", "total", runs, self._floor(self._prompts.shared_prefix(0)))
        _say(f"      {self._ready().stats()}")

    def _w4(self, repeats: int) -> Iterator[Figure]:
        runs = [self._time(self._prompts.single(i, 32768, 1)) for i in range(repeats)]
        yield _figure("W4", "ttft", runs, self._floor(self._prompts.single(0, 32768, 1)))

    def _w5(self, repeats: int) -> Iterator[Figure]:
        full, half = self._prompts.batch(0), self._prompts.batch(0, output_length=128)
        runs = [self._time(self._prompts.batch(i)) for i in range(repeats)]
        halves = [self._time(self._prompts.batch(OTHER_LENGTHS + i, 128)) for i in range(repeats)]
        steps = full.output_lengths[0] - half.output_lengths[0]
        yield _figure("W5", "total", runs, self._floor(full))
        between = [(run - statistics.median(halves)) / steps for run in runs]
        floor = self._costs.decode_seconds(full, self._ceilings)
        floor -= self._costs.decode_seconds(half, self._ceilings)
        yield _figure("W5", "step", _ms(between), 1e3 * floor / steps)

    def _w6(self, repeats: int) -> Iterator[Figure]:
        self.close()  # the fresh process wants the card for itself
        prompt = self._prompts.single(0).prompts[0]
        for metric, runs in time_starts(self._folder, self._options, prompt, repeats).items():
            yield _figure("W6", metric, runs)

    # ---- parts -------------------------------------------------------------------------------------

    def _throughput(self, workload: str, runs: list[float], requests: Requests) -> Iterator[Figure]:
        floor, tokens = self._floor(requests), sum(requests.output_lengths)
        yield _figure(workload, "total", runs, floor)
        yield _figure(workload, "output_throughput", [tokens / run for run in runs], tokens / floor)

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


def _figure(workload: str, metric: str, runs: list[float], floor: float | None = None) -> Figure:
    return Figure(workload, metric, statistics.median(runs), runs, floor)


def _ms(runs: list[float]) -> list[float]:
    return [1e3 * run for run in runs]


class Results:
    """The rows so far, on disk after every workload: a run that is cut short loses one workload at most."""

    def __init__(self, folder: Path | None, context: dict[str, str]) -> None:
        self._folder = folder
        self._context = context
        self.rows: list[dict[str, Any]] = []

    def add(self, model: str, figures: list[Figure]) -> None:
        """Take figures over and write them."""
        rows = [self._row(model, figure) for figure in figures]
        self.rows += rows
        if self._folder is not None:
            write_rows(self._folder, rows)

    def write_trace(self, model: str, workload: str, summary: dict) -> None:
        """Write the summary of a trace beside the rows."""
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            record = {"model": model, "workload": workload, **self._context, **summary}
            path = self._folder / f"h100_trace_{model}_{workload}.json"
            path.write_text(json.dumps(record, indent=1) + "\n")

    def _row(self, model: str, figure: Figure) -> dict[str, Any]:
        target = TARGETS.get((model, figure.workload, figure.metric))
        unit = UNITS.get(figure.metric, "s")
        ratio = None
        if target is not None:
            ratio = target.best_peer / figure.value if unit != "tok/s" else figure.value / target.best_peer
        return {
            "model": model,
            "workload": figure.workload,
            "metric": figure.metric,
            "unit": unit,
            "value": figure.value,
            "best_peer": target.best_peer if target else None,
            "ratio": ratio,
            "floor": figure.floor,
            **self._context,
            "runs": figure.runs,
        }


def write_rows(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows: ``h100.json`` keeps the latest of each figure, the history all of them."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "h100.json"
    latest = json.loads(path.read_text()) if path.exists() else []
    by_key = {(row["model"], row["workload"], row["metric"]): row for row in latest + rows}
    path.write_text(json.dumps([by_key[key] for key in sorted(by_key)], indent=1) + "\n")
    with (folder / "h100_history.jsonl").open("a") as history:
        history.writelines(json.dumps(row) + "\n" for row in rows)


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table, with what must be reached and what is aimed at."""
    lines = [
        "| model | workload | metric | ours | best peer | ratio | must | aim | floor | runs |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for row in rows:
        target = TARGETS.get((row["model"], row["workload"], row["metric"])) or Target(0)
        runs = " ".join(_number(run) for run in row["runs"])
        numbers = (row["value"], row["best_peer"], row["ratio"], target.must, target.aim, row["floor"])
        what = [row["model"], row["workload"], f"{row['metric']}, {row['unit']}"]
        cells = [*what, *map(_number, numbers), runs]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


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


def _context(commit: str | None, device: torch.device) -> dict[str, str]:
    if commit is None:
        command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
        try:
            commit = subprocess.run(command, capture_output=True, text=True).stdout.strip()
        except OSError:
            commit = ""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "commit": commit or "unknown",
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def _names(allowed: tuple[str, ...]) -> Callable[[str], list[str]]:
    def split(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in allowed:
                raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(allowed)}")
        return names

    return split


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=_names(("L8B", "Q05B")), default=["L8B", "Q05B"], metavar="A,B")
    parser.add_argument(
        "--workloads", type=_names(tuple(WORKLOADS)), default=list(WORKLOADS), metavar="W1,W2"
    )
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
    results = Results(args.out if written else None, _context(args.commit, device))
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
    complete = True
    for workload in sorted(args.workloads, key=lambda name: (name != "W6", name)):  # W6 wants the card empty
        if workload == "W4" and MODELS[name]["max_position_embeddings"] <= 32768 and not args.quick:
            _say(f"{name} W4 left out: 32768 tokens and one more do not fit its context.")
            continue
        _say(f"{name} {workload}: {WORKLOADS[workload]}")

        def measure(workload: str = workload) -> None:
            figures = []
            for figure in bench.run(workload, args.repeats or REPEATS[workload]):
                figures.append(figure)
                _say(f"      {figure.metric}: {' '.join(map(_number, figure.runs))}")
            results.add(name, figures)

        complete &= _attempt(f"{name} {workload}", measure)
    return complete


if __name__ == "__main__":
    sys.exit(main())
