"""Decoding on a CPU that is shared: tokens per second alone and beside processes that keep cores busy.

    python benchmarks/shared_cpu.py --model SmolLM2-135M-Instruct.Q4_1.gguf [--before CHECKOUT]

Each engine runs in a process of its own, with the threads it takes by itself, and decodes with 1 and with 8
requests, 32 tokens in: what counts is the time between the first token and the last. The neighbours are
processes that do nothing but count. ``--before`` adds the Rootlet of another checkout with its kernels built.
Rows go to ``results/shared_cpu.json``. transformers needs accelerate to read GGUF files; llama.cpp takes part
where llama-cpp-python is installed. Without neighbours the machine must be idle.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "shared_cpu.json"
ENGINES = (
    "rootlet",
    "rootlet num_threads=1",
    "before",
    "transformers bf16",
    "transformers fp32",
    "llama.cpp q4_1",
)
NUM_PROMPT = 32
BATCHES = (1, 8)


@contextlib.contextmanager
def neighbours(count: int) -> Iterator[None]:
    """So many busy processes, for as long as the context lasts."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def measure(name: str, model: Path, num_decoded: int, repeats: int) -> dict[str, float]:
    """Tokens per second of decoding by batch size, medians; in this process."""
    import numpy as np
    from cpu_engines import LlamaCpp, Rootlet, Transformers

    if name.startswith("transformers"):
        reference = Transformers.load(model)
        contestant = Transformers(name, reference.bfloat16() if name.endswith("bf16") else reference)
    elif name.startswith("llama.cpp"):
        contestant = LlamaCpp(name, model)
    else:
        contestant = Rootlet(model, **({"num_threads": 1} if name.endswith("=1") else {}))
    ids = np.random.default_rng(0)
    rates = {}
    with contestant.ready():
        for batch in BATCHES:
            seconds: dict[int, list[float]] = {1: [], num_decoded: []}
            for _ in range(repeats):
                for num_outputs, runs in seconds.items():
                    prompts = ids.integers(100, 48_000, (batch, NUM_PROMPT)).tolist()
                    start = time.perf_counter()
                    contestant.generate(prompts, [num_outputs] * batch)
                    runs.append(time.perf_counter() - start)
            first, last = (statistics.median(runs) for runs in seconds.values())
            rates[str(batch)] = round(batch * (num_decoded - 1) / (last - first), 2)
    contestant.close()
    return rates


def in_process(name: str, options: argparse.Namespace) -> dict[str, float]:
    """:func:`measure` in a process of its own, which imports the Rootlet meant by ``name``."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [os.environ.get("PYTHONPATH", "")]
        if name == "before":
            (Path(folder) / "rootlet").symlink_to(options.before.resolve())
            paths.insert(0, folder)
        command = [sys.executable, __file__, "--model", str(options.model), "--measure", name]
        command += ["--decoded", str(options.decoded), "--repeats", str(options.repeats)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        try:
            done = subprocess.run(
                command, env=environment, stdout=subprocess.PIPE, check=True, timeout=options.timeout
            )
        except subprocess.TimeoutExpired:
            return {}
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure every engine beside every number of neighbours, and write the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="GGUF file of SmolLM2-135M-Instruct")
    parser.add_argument("--before", type=Path, help="checkout of an earlier Rootlet")
    parser.add_argument("--neighbours", default="0,1", help="numbers of busy processes, comma-separated")
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--decoded", type=int, default=33, help="tokens of an answer")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--timeout", type=int, default=120, help="seconds for one engine; beyond, no figure")
    parser.add_argument("--note", default="", help="what else there is to know of this run")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.model, options.decoded, options.repeats)))
        return
    from cpu import machine
    from cpu_engines import llama_cpp_available

    names = options.engines.split(",")
    if options.before is None:
        names = [name for name in names if name != "before"]
    if not llama_cpp_available():
        names = [name for name in names if not name.startswith("llama.cpp")]
    rows = []
    for count in map(int, options.neighbours.split(",")):
        for name in names:
            with neighbours(count):
                rates = in_process(name, options)
            rows.append({"neighbours": count, "engine": name, "tokens_per_s": rates})
            print(f"{count} neighbours  {name:24s} {rates or 'no figure in time'}", flush=True)
    result = {"machine": machine(), "note": options.note, "rows": rows}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
