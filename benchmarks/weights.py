"""What an update of the weights costs, beside a plain copy of the same bytes on the same device.

    python benchmarks/weights.py [--model L8B] [--repeats 5] [--out results/weights.json] [--commit COMMIT]
    python benchmarks/weights.py --quick      # a tiny model on any device

- copy: ``torch.Tensor.copy_`` of as many values as the weights have, device to device, from bf16 or fp32
- held: ``update_weights`` of a state dict whose tensors stay
- passing: of an iterator whose tensors are overwritten, so that they are kept in the KV pool first
- shared: ``weights_changed()`` after a step of a trainer that shares the weights (of a stand-in for a module)

Medians of the repeats, every call to its end on the device; the first of each, which plans, is not counted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from h100_results import context
from h100_workloads import ENGINE_OPTIONS, MODELS, write_config

import rootlet

PROMPTS = [[101 + i, 7, 9] * 20 for i in range(8)]
PARAMS = {"temperature": 0, "max_new_tokens": 24, "ignore_eos": True}


def timed(call: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of each call, to its end on the device."""
    seconds = []
    for _ in range(repeats + 1):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        begin = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    return seconds[1:]


def new_weights(engine: rootlet.Engine, dtype: torch.dtype, seed: int) -> dict[str, torch.Tensor]:
    """Random values for every weight, on the engine's device."""
    model = engine._loop.call(lambda core: core.runner.model)
    device = engine._resolved.device
    generator = torch.Generator(device).manual_seed(seed)
    return {
        name: torch.empty(shape, dtype=dtype, device=device).normal_(0, 0.02, generator=generator)
        for name, shape in model.weight_shapes.items()
    }


def plain_copy(engine: rootlet.Engine, numel: int, dtype: torch.dtype) -> Callable[[], None]:
    """Copy so many values into the engine's dtype: an eighth of them eight times, for want of room."""
    device, part = engine._resolved.device, -(-numel // 8)
    source = torch.empty(part, dtype=dtype, device=device)
    target = torch.empty(part, dtype=engine._resolved.dtype, device=device)

    def copy() -> None:
        for _ in range(8):
            target.copy_(source)

    return copy


def passing(weights: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """One at a time through one buffer, as a gathering trainer gives them."""
    largest = max(tensor.numel() for tensor in weights.values())
    first = next(iter(weights.values()))
    buffer = torch.empty(largest, dtype=first.dtype, device=first.device)
    for name, tensor in weights.items():
        view = buffer[: tensor.numel()].view(tensor.shape)
        yield name, view.copy_(tensor)


def as_module(weights: dict[str, torch.Tensor]) -> torch.nn.Module:
    """A module whose parameters have these names."""
    root = torch.nn.Module()
    for name, tensor in weights.items():
        owner, (*path, attribute) = root, name.split(".")
        for part in path:
            if part not in owner._modules:
                owner.add_module(part, torch.nn.Module())
            owner = owner.get_submodule(part)
        owner.register_parameter(attribute, torch.nn.Parameter(tensor, requires_grad=False))
    return root


def generated(engine: rootlet.Engine) -> list[tuple[int, ...]]:
    """What the engine says with its present weights."""
    return [output.token_ids for output in engine.generate(input_ids=PROMPTS, sampling_params=PARAMS)]


def measure_dtype(engine: rootlet.Engine, dtype: torch.dtype, repeats: int) -> tuple[dict[str, Any], list]:
    """Seconds of every way from tensors of one dtype, and what was generated after each."""
    weights, name = new_weights(engine, dtype, 0), str(dtype).removeprefix("torch.")
    numel = sum(tensor.numel() for tensor in weights.values())
    rows = {f"copy, {name}": timed(plain_copy(engine, numel, dtype), repeats)}
    outputs = []
    rows[f"held, {name}"] = timed(lambda: engine.update_weights(weights), repeats)
    outputs.append(generated(engine))
    rows[f"passing, {name}"] = timed(lambda: engine.update_weights(passing(weights)), repeats)
    outputs.append(generated(engine))
    if dtype == engine._resolved.dtype and engine._resolved.device.type == "cuda":
        engine.share_weights(as_module(weights))
        rows["shared"] = timed(engine.weights_changed, repeats)
        outputs.append(generated(engine))
        engine.unshare_weights()
    return rows, outputs


def measure(engine: rootlet.Engine, repeats: int) -> dict[str, Any]:
    """Seconds of every way, and whether what is generated afterwards is the same by all of them."""
    rows: dict[str, Any] = {}
    outputs: list[list[tuple[int, ...]]] = []
    for dtype in (engine._resolved.dtype, torch.float32):
        more, said = measure_dtype(engine, dtype, repeats)
        rows |= more
        # values of the two dtypes are drawn apart
        rows[f"equal, {dtype}"] = all(one == said[0] for one in said)
    for cycle in range(20):  # recorded steps read the same addresses
        engine.update_weights(new_weights(engine, engine._resolved.dtype, cycle % 2))
        outputs.append(generated(engine))
    rows["equal after 20 updates"] = outputs[0::2] == outputs[:1] * 10 and outputs[1::2] == outputs[1:2] * 10
    return rows


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=sorted(MODELS), default="L8B")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--commit")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as root:
        folder = write_config("TINY" if args.quick else args.model, Path(root))
        options = ENGINE_OPTIONS | ({} if args.quick else {"max_total_tokens": 140_000})
        with rootlet.Engine(str(folder), **options) as engine:
            rows = measure(engine, args.repeats)
    for name, value in rows.items():
        if isinstance(value, list):
            print(
                f"{name:20} {1e3 * statistics.median(value):9.2f} ms   {[round(1e3 * v, 2) for v in value]}"
            )
        else:
            print(f"{name:20} {value}")
    for name in {name.partition(", ")[2] for name in rows if name.startswith("copy")}:
        plain, held = (statistics.median(rows[f"{kind}, {name}"]) for kind in ("copy", "held"))
        print(f"from {name}: {held / plain:.2f} times a plain copy")
    if args.out:
        args.out.write_text(
            json.dumps({"context": context(args.commit, device), "rows": rows}, indent=1) + "\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
