"""Rootlet against transformers and llama.cpp on this CPU: same model, prompts and lengths, one process.

    python benchmarks/cpu.py --model SmolLM2-135M-Instruct.Q4_1.gguf

Every engine runs every workload several times, interleaved, so that a slow minute of the machine
hits all of them; medians are reported. Prompts are random token ids (lengths fixed by a seed, ids
fresh in each repeat, so that no repeat finds the prefixes of an earlier one), greedy, EOS ignored.
Results go to ``benchmarks/results/cpu.json`` and ``cpu.md``. transformers needs the package accelerate
to read GGUF files; llama.cpp takes part where llama-cpp-python is installed. Run it on an otherwise
idle machine: a quarter of an hour on two cores.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from cpu_engines import Contestant, LlamaCpp, Rootlet, Transformers, convert_gguf, llama_cpp_available

from rootlet.kernels import native

RESULTS = Path(__file__).parent / "results"
FIRST_ID, LAST_ID = 100, 48_000  # ordinary tokens of SmolLM2
NUM_DECODED = 128
SLOW = 45.0  # seconds


@dataclass(frozen=True)
class Workload:
    """Prompts of fixed lengths; ``repeat`` changes the ids and nothing else."""

    key: str
    title: str
    input_lengths: list[int]
    output_lengths: list[int]
    num_shared: int = 0
    left_out: tuple[str, ...] = ()  # engines that would take many minutes

    def prompts(self, repeat: int) -> list[list[int]]:
        """Fresh prompts: lists of token ids, the first ``num_shared`` ids in common."""
        ids = np.random.default_rng([repeat, *self.key.encode()])
        shared = ids.integers(FIRST_ID, LAST_ID, self.num_shared).tolist()
        return [
            shared + ids.integers(FIRST_ID, LAST_ID, n - self.num_shared).tolist() for n in self.input_lengths
        ]


def workloads(scale: int) -> list[Workload]:
    """The three workloads; ``scale`` divides their sizes for a quick try."""
    rng = np.random.default_rng(0)
    n = 64 // scale
    inputs, outputs = rng.integers(16, 257, n).tolist(), rng.integers(16, 129, n).tolist()
    return [
        Workload("mixed", f"{n} prompts, 16-256 tokens in, 16-128 out", inputs, outputs),
        Workload("prefill", "one prompt, 128 in, 1 out", [128], [1]),
        Workload("decode", f"one prompt, 128 in, {NUM_DECODED} out", [128], [NUM_DECODED]),
        Workload(
            "shared",
            f"{n} prompts, 512 shared + 32 own in, 32 out",
            [544] * n,
            [32] * n,
            num_shared=512,
            left_out=("transformers bf16",),
        ),
    ]


def measure(
    contestants: list[Contestant], loads: list[Workload], repeats: int, log: Callable[[str], None]
) -> dict[str, dict[str, list[float]]]:
    """Return seconds by workload and engine, a list over repeats.

    An engine that needs more than ``SLOW`` seconds for a workload runs that one once.
    """
    warm_up = Workload("warm-up", "", [32, 200], [4, 8])
    for contestant in contestants:
        run(contestant, warm_up, 0)
    seconds: dict[str, dict[str, list[float]]] = {load.key: {} for load in loads}
    for repeat in range(repeats):
        for load in loads:
            for contestant in [c for c in contestants if c.name not in load.left_out]:
                runs = seconds[load.key].setdefault(contestant.name, [])
                if not runs or runs[0] <= SLOW:
                    runs.append(run(contestant, load, repeat))
                    log(f"{repeat + 1}/{repeats}  {load.key:8s} {contestant.name:18s} {runs[-1]:8.2f} s")
    return seconds


def run(contestant: Contestant, load: Workload, repeat: int) -> float:
    """Return the seconds that an engine needs for a workload.

    Each run has a thread of its own, and so a team of OpenMP workers of its own: the idle teams of
    earlier runs would slow down whoever comes next. Static batches of prompts that all have the same
    lengths differ in nothing: the first is timed and counted for each.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_run, contestant, load, repeat).result()


def _run(contestant: Contestant, load: Workload, repeat: int) -> float:
    prompts, lengths, weight = load.prompts(repeat), load.output_lengths, 1.0
    if load.num_shared and contestant.batch_size is not None:
        weight = len(prompts) / len(prompts[: contestant.batch_size])
        prompts, lengths = prompts[: contestant.batch_size], lengths[: contestant.batch_size]
    with contestant.ready():
        start = time.perf_counter()
        outputs = contestant.generate(prompts, lengths, load.num_shared)
        elapsed = time.perf_counter() - start
    if [len(out) for out in outputs] != lengths:
        raise RuntimeError(f"{contestant.name} returned other lengths than asked for on {load.key!r}.")
    return elapsed * weight


def read_bandwidth(repeats: int = 7) -> float:
    """Bytes per second this machine reads with all its threads: the best of several sums over 1 GiB."""
    data = torch.ones(2**28, dtype=torch.float32)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        data.sum()
        best = min(best, time.perf_counter() - start)
    return data.nbytes / best


def model_bytes(model: Path) -> int:
    """Bytes of the weights in bf16: each is read once per token (the tied embedding as output layer)."""
    import gguf

    return sum(2 * int(tensor.n_elements) for tensor in gguf.GGUFReader(model).tensors)


def summarise(
    loads: list[Workload], seconds: dict[str, dict[str, list[float]]]
) -> dict[str, dict[str, float]]:
    """Medians by engine: output tokens/s of the two batches, ms per token of a lone request."""
    engines: dict[str, dict[str, float]] = {name: {} for name in seconds["mixed"]}
    for load in loads:
        for name, runs in seconds[load.key].items():
            engines[name][f"{load.key}_s"] = elapsed = statistics.median(runs)
            if load.key in ("mixed", "shared"):
                engines[name][f"{load.key}_tokens_per_s"] = sum(load.output_lengths) / elapsed
    for row in engines.values():
        row["decode_ms_per_token"] = (row["decode_s"] - row["prefill_s"]) * 1e3 / (NUM_DECODED - 1)
    return engines


def machine() -> dict[str, object]:
    """What the numbers depend on: processor, instruction sets, memory, versions, commit, date."""
    cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    fields = dict(line.split(":", 1) for line in cpu.splitlines() if ":" in line)
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    known = ("avx2", "fma", "f16c", "avx512f", "avx512_bf16", "amx_bf16")
    packages = ("rootlet", "torch", "transformers", "llama_cpp_python", "numpy")
    versions = {name: _version(name) for name in packages}
    return {
        "date": datetime.date.today().isoformat(),
        "commit": _commit(),
        "cpu": fields.get("model name", platform.processor()),
        "cpu_family_model": f"{fields.get('cpu family', '?')}/{fields.get('model', '?')}",
        "instruction_sets": [flag for flag in known if flag in fields.get("flags", "").split()],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "rootlet_kernels": native.describe(),
        "python": platform.python_version(),
        "versions": {name: version for name, version in versions.items() if version},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str:
    def git(*arguments: str) -> str:
        result = subprocess.run(
            ["git", "-C", Path(__file__).parent, *arguments], capture_output=True, text=True
        )
        return result.stdout.strip()

    return git("describe", "--always", "--dirty") or "none"


def table(result: dict) -> str:
    """The result as a Markdown page."""
    info, floor = result["machine"], result["floor"]
    base, shared_base = result["engines"]["transformers bf16"], result["engines"]["transformers fp32"]
    versions = ", ".join(f"{name} {version}" for name, version in info["versions"].items())
    titles = [
        f"{load['key']}: {load['title']}"
        for load in result["workloads"]
        if load["key"] in ("mixed", "shared")
    ]
    lines = [
        "# CPU benchmark",
        "",
        f"{result['model']}, bf16 unless said. {info['cpu']} (family/model {info['cpu_family_model']}),",
        f"{info['threads']} threads, {info['memory_gib']} GiB, {', '.join(info['instruction_sets'])};",
        f"Rootlet's kernels {info['rootlet_kernels']}.",
        f"{versions}; commit {info['commit']}, {info['date']}.",
        f"Medians of {result['repeats']} interleaved repeats in one process (`make bench-cpu`).",
        "",
        *[f"- {title}" for title in titles],
        f"- bs=1: one request, 128 tokens in, {NUM_DECODED} out",
        "",
        "| engine | mixed tok/s | x | shared tok/s | x | bs=1 ms/token | x | 128-token prefill ms |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in result["engines"].items():
        cells = [
            name,
            *_speed(row, base, "mixed_tokens_per_s"),
            *_speed(row, shared_base, "shared_tokens_per_s"),
        ]
        decode = row["decode_ms_per_token"]
        cells += [
            f"{decode:.2f}",
            f"{base['decode_ms_per_token'] / decode:.2f}",
            f"{row['prefill_s'] * 1e3:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    ratio = result["engines"]["rootlet bf16"]["decode_ms_per_token"] / floor["ms_per_token"]
    lines += [
        "",
        "x: times the speed of transformers bf16; for `shared`, where that would take many minutes, of fp32.",
        "transformers runs static batches of 16 with left padding, sorted by prompt length (of the equal",
        "batches of `shared` one is timed); llama.cpp runs 16 slots, continuously batched, with the shared",
        f"prefix copied. What takes over {SLOW:.0f} s is run once.",
        "",
        f"Floor of bs=1 decode: {result['model_bytes'] / 1e6:.0f} MB of weights, read at the measured",
        f"{floor['read_gb_per_s']:.1f} GB/s, take {floor['ms_per_token']:.2f} ms per token; Rootlet takes",
        f"{ratio:.2f} times that.",
    ]
    return "\n".join(lines) + "\n"


def _speed(row: dict, base: dict, key: str) -> list[str]:
    return [f"{row[key]:.1f}", f"{row[key] / base[key]:.2f}"] if key in row else ["-", "-"]


def contestants(model: Path, scratch: Path) -> list[Contestant]:
    """Load every engine that is installed."""
    found: list[Contestant] = [Rootlet(model)]
    reference = Transformers.load(model)
    found.append(Transformers("transformers bf16", copy.deepcopy(reference).bfloat16()))
    found.append(Transformers("transformers fp32", reference))
    if llama_cpp_available():
        convert_gguf(model, scratch / "f16.gguf", "F16")
        found.append(LlamaCpp("llama.cpp f16", scratch / "f16.gguf"))
        found.append(LlamaCpp("llama.cpp q4_1", model))
    return found


def main() -> None:
    """Run everything and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="GGUF file of SmolLM2-135M-Instruct")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="an eighth of the work, once, nothing written")
    options = parser.parse_args()

    repeats = 1 if options.quick else options.repeats
    loads = workloads(8 if options.quick else 1)
    with tempfile.TemporaryDirectory() as scratch:
        with ThreadPoolExecutor(1) as thread:
            engines = thread.submit(contestants, options.model, Path(scratch)).result()
        seconds = measure(engines, loads, repeats, log=print)
        bandwidth = read_bandwidth()
        for engine in engines:
            engine.close()
    size = model_bytes(options.model)
    result = {
        "model": options.model.stem.split(".")[0],
        "model_bytes": size,
        "machine": machine(),
        "repeats": repeats,
        "workloads": [{"key": load.key, "title": load.title} for load in loads],
        "floor": {"read_gb_per_s": bandwidth / 1e9, "ms_per_token": size / bandwidth * 1e3},
        "engines": summarise(loads, seconds),
        "seconds": seconds,
    }
    page = table(result)
    print(page)
    if not options.quick:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "cpu.json").write_text(json.dumps(result, indent=1) + "\n")
        (RESULTS / "cpu.md").write_text(page)
        print(f"Written to {RESULTS / 'cpu.json'} and cpu.md.")


if __name__ == "__main__":
    main()
