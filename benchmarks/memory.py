"""Memory that an engine gives to a trainer beside it, and takes back: bytes by tag, seconds, answers.

    python benchmarks/memory.py                               # L8B, on a GPU of 80 GB
    python benchmarks/memory.py --model Q05B --cycles 5
    python benchmarks/memory.py --quick                       # a tiny model on any device; measures nothing

Dummy weights. ``taken`` is what free memory has lost by constructing the engine, after a tiny engine has
come and gone (CUDA's context, kernels, cuBLAS' workspaces stay). A cycle releases all tags, resumes the
weights, pushes them from tensors on the same device as a trainer has them, resumes the rest, and asks for
the answers of the beginning. Two cycles more keep the weights on the host. Exit code 1 if answers differ.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from h100_workloads import MODELS, write_config

import rootlet

GIB = 2**30
PARAMS = {"temperature": 0, "max_new_tokens": 32, "ignore_eos": True}
PAGE = 4096


def used(device: str) -> int:
    """Bytes in use on the device; on a CPU those of this process."""
    gc.collect()
    if device == "cpu":
        return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    return total - free


def answers(engine: rootlet.Engine) -> list[tuple[int, ...]]:
    """Tokens of prompts one by one, so that their steps are the same each time."""
    engine.flush_cache()
    prompts = [[100 + (7 * i + j) % 1800 for j in range(length)] for i, length in enumerate((1, 30, 400))]
    return [engine.generate(input_ids=p, sampling_params=PARAMS).token_ids for p in prompts]


def timed(seconds: dict[str, list[float]], name: str, call: Callable[[], Any]) -> Any:
    """What ``call()`` gives; its time goes to ``seconds[name]``."""
    begin = time.perf_counter()
    result = call()
    seconds.setdefault(name, []).append(time.perf_counter() - begin)
    return result


def gib(num_bytes: int) -> str:
    """Bytes as a figure."""
    return f"{num_bytes / GIB:8.3f} GiB"


def run(folder: Path, device: str, cycles: int, options: dict[str, Any]) -> dict[str, Any]:
    """All figures of one model."""
    base, begin = used(device), time.perf_counter()
    options = {"load_format": "dummy", "skip_tokenizer_init": True, "device": device, **options}
    with rootlet.Engine(str(folder), enable_memory_saver=True, **options) as engine:
        print(f"construction        {time.perf_counter() - begin:8.3f} s")
        figures = cycle(engine, device, cycles, base)
    if device != "cpu":
        torch.cuda.empty_cache()
    print(f"after close         {gib(used(device) - base)} more than before")
    return figures


def cycle(engine: rootlet.Engine, device: str, cycles: int, base: int) -> dict[str, Any]:
    """Release and resume; ``base`` bytes were in use before the engine was built."""
    taken = used(device) - base
    answers(engine)
    expected = answers(engine)  # steps are recorded now
    model = engine._loop._core.runner.model
    weights = {name: model.get_weight(name).clone() for name in model.weight_shapes}
    trainers = sum(tensor.nbytes for tensor in weights.values())
    seconds: dict[str, list[float]] = {}
    left, by_tag, same = 0, {}, True
    for _ in range(cycles):
        by_tag = timed(seconds, "release", engine.release_memory).by_tag
        left = used(device) - base - trainers
        timed(seconds, "resume weights", lambda: engine.resume_memory(["weights"]))
        timed(seconds, "push", lambda: engine.update_weights(weights))
        timed(seconds, "resume the rest", engine.resume_memory)
        same &= answers(engine) == expected
        same &= answers(engine) == expected
    print(f"taken               {gib(taken)}")
    print(f"left when released  {gib(left)}: {1 - left / taken:.2%} freed")
    for tag, freed in by_tag.items():
        print(f"  {tag:18}{gib(freed)}")
    for _ in range(2):  # the first locks host memory
        timed(seconds, "to host", lambda: engine.release_memory(["weights", "kv_cache"], weights="host"))
        timed(seconds, "from host", engine.resume_memory)
        same &= answers(engine) == expected
    for name, runs in seconds.items():
        spread = f"(of {len(runs)}: {min(runs):.3f} to {max(runs):.3f})"
        print(f"{name:20}{statistics.median(runs):8.3f} s  {spread}")
    steps = ("resume weights", "push", "resume the rest")
    print(f"resume and update   {sum(statistics.median(seconds[name]) for name in steps):8.3f} s")
    print("answers are the same" if same else "ANSWERS DIFFER")
    return {"taken": taken, "left": left, "by_tag": dict(by_tag), "seconds": seconds, "same": same}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="L8B", choices=[*MODELS])
    parser.add_argument("--cycles", type=int, default=20)
    parser.add_argument("--options", type=json.loads, default={"mem_fraction_static": 0.6}, metavar="JSON")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, help="a file for the figures, as JSON")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.quick:
        args.model, args.cycles, args.options = "TINY", 2, {"max_total_tokens": 4096}
    with tempfile.TemporaryDirectory() as root:
        if device == "cuda":
            tiny = write_config("TINY", Path(root))
            with rootlet.Engine(str(tiny), load_format="dummy", skip_tokenizer_init=True) as engine:
                engine.generate(input_ids=[5, 6, 7], sampling_params=PARAMS)
            del engine
        folder = write_config(args.model, Path(root))
        card = torch.cuda.get_device_name() if device == "cuda" else "a CPU"
        print(f"{args.model} on {card}, {args.options}")
        figures = run(folder, device, args.cycles, args.options)
    if args.out:
        args.out.write_text(json.dumps({"model": args.model, **figures}, indent=1))
    return 0 if figures["same"] else 1


if __name__ == "__main__":
    sys.exit(main())
