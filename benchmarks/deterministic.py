"""What ``deterministic=True`` costs: the same requests with and without it, in one run.

    python benchmarks/deterministic.py L8B Q05B                          # shapes of h100.py, dummy weights
    python benchmarks/deterministic.py SmolLM2.gguf --scale 8            # a real model; a shorter run
    python benchmarks/deterministic.py --add OUT/deterministic.json      # take over rows measured elsewhere

Three loads: one request of 128 tokens in and 128 out, 128 requests of 512 in and 128 out, and one of 8192 in
and 1 out (as far as the model's context goes). Wall clock, median of three after a run that is not counted.
``results/deterministic.json`` keeps the latest row of each (model, device, load).
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import random
import statistics
import tempfile
import time
from pathlib import Path

import torch
from cpu import machine
from h100_workloads import MODELS, write_config

import rootlet

RESULTS = Path(__file__).parent / "results" / "deterministic.json"
LOADS = {"alone": (1, 128, 128), "batch": (128, 512, 128), "long prompt": (1, 8192, 1)}
REPEATS = 3


def measure(path: str, options: dict, scale: int) -> dict[str, float]:
    """Seconds of each load."""
    draw = random.Random(0)
    seconds = {}
    with rootlet.Engine(path, skip_tokenizer_init=True, random_seed=0, **options) as engine:
        context = engine.get_server_info()["context_length"]
        for load, (count, num_in, num_out) in LOADS.items():
            count, num_out = max(1, count // scale), max(1, num_out // scale)
            num_in = min(num_in // scale, context - num_out)
            params = {"temperature": 0, "max_new_tokens": num_out, "ignore_eos": True}
            runs = []
            for _ in range(1 + REPEATS):
                prompts = [[draw.randrange(100, 1900) for _ in range(num_in)] for _ in range(count)]
                start = time.perf_counter()
                engine.generate(input_ids=prompts, sampling_params=params)
                runs.append(time.perf_counter() - start)
            seconds[load] = statistics.median(runs[1:])
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return seconds


def compare(model: str, scale: int, commit: str) -> list[dict]:
    """The rows of one model."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else str(machine()["cpu"])
    with tempfile.TemporaryDirectory() as folder:
        options, path = {"dtype": "bfloat16"}, model
        if model in MODELS:
            path = str(write_config(model, Path(folder)))
            options["load_format"] = "dummy"
        plain = measure(path, options, scale)
        exact = measure(path, options | {"deterministic": True}, scale)
    rows = []
    for load, (count, num_in, num_out) in LOADS.items():
        rows.append(
            {
                "model": Path(model).name,
                "device": device,
                "load": load,
                "requests": f"{count} x ({num_in} in, {num_out} out), divided by {scale}",
                "plain_s": round(plain[load], 4),
                "deterministic_s": round(exact[load], 4),
                "ratio": round(exact[load] / plain[load], 3),
                "torch": torch.__version__,
                "commit": commit,
                "date": datetime.date.today().isoformat(),
            }
        )
        print("{model:12} {load:12} {plain_s:9.4f} s {deterministic_s:9.4f} s  x {ratio}".format(**rows[-1]))
    return rows


def write(rows: list[dict], file: Path) -> None:
    """Replace the rows of the same (model, device, load)."""
    kept = json.loads(file.read_text()) if file.exists() else []
    key = ("model", "device", "load")
    new = {tuple(row[k] for k in key) for row in rows}
    kept = [row for row in kept if tuple(row[k] for k in key) not in new]
    file.write_text(json.dumps(kept + rows, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", help="L8B, Q05B, or what Engine() loads")
    parser.add_argument("--scale", type=int, default=1, help="divide numbers and lengths by this")
    parser.add_argument("--commit", default=None, help="commit that is measured; default: asked of git")
    parser.add_argument("--out", type=Path, default=RESULTS, help="file for the rows")
    parser.add_argument("--add", type=Path, help="file of rows to take over instead of measuring")
    args = parser.parse_args()
    rows = json.loads(args.add.read_text()) if args.add else []
    for model in args.models:
        rows += compare(model, args.scale, args.commit or str(machine()["commit"]))
    write(rows, args.out)


if __name__ == "__main__":
    main()
