"""What constraints cost, and what jump-forward saves.

    python benchmarks/constraints.py MODEL                       # a real model: what Engine() loads
    python benchmarks/constraints.py MODEL --batch 64 --out DIR  # rows go to DIR/constraints.json

Every load runs constrained and free, ``--batch`` requests at once: the same prompts, the same number of
tokens (the constraints go on for longer), temperature 1. Per-token time is (t(long) - t(short)) divided by
the difference of the lengths, so that prefill and admission drop out; wall clock, median of ``--repeats``,
the two kinds in turns. ``first token`` is the time to one token, with the grammar cached. The passes of
jump-forward are counted one request at a time, on a schema with long fixed keys.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from cpu import machine

import rootlet

RESULTS = Path(__file__).parent / "results" / "constraints.json"
SHORT, LONG = 8, 72
ENDLESS = {"regex": r"([A-Za-z0-9 ,.]|\n)*END"}
JSON = {"json_schema": {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1000}}
FORM = {
    "type": "object",
    "properties": {
        "customer_identification_number": {"type": "integer", "minimum": 1, "maximum": 999},
        "preferred_delivery_address_street": {"type": "string", "maxLength": 12},
        "requires_signature_on_delivery": {"type": "boolean"},
        "additional_comments_for_courier": {"enum": ["none", "ring twice"]},
    },
}
FORM["required"] = list(FORM["properties"])


def seconds(engine: rootlet.Engine, prompts: list[str], constraint: dict, num_tokens: int) -> float:
    """Wall clock of all prompts, each with exactly that many tokens."""
    params = {"temperature": 1, "seed": 1, "max_new_tokens": num_tokens, "ignore_eos": True, **constraint}
    start = time.perf_counter()
    outputs = engine.generate(prompts, params)
    elapsed = time.perf_counter() - start
    assert all(len(output.token_ids) == num_tokens for output in outputs)
    return elapsed


def compare(engine: rootlet.Engine, name: str, constraint: dict, batch: int, repeats: int) -> dict:
    """Per-token and first-token times of one constraint beside none."""
    prompts = [f"Report number {i}:" for i in range(batch)]
    times: dict[tuple[bool, int], list[float]] = {}
    for _ in range(1 + repeats):  # the first compiles and warms up
        for bound in (False, True):
            for count in (1, SHORT, LONG):
                elapsed = seconds(engine, prompts, constraint if bound else {}, count)
                times.setdefault((bound, count), []).append(elapsed)
    median = {key: statistics.median(values[1:]) for key, values in times.items()}
    per_token = {
        bound: (median[bound, LONG] - median[bound, SHORT]) / (LONG - SHORT) for bound in (False, True)
    }
    return {
        "load": f"{name}, {batch} at once",
        "free_ms_per_step": round(1e3 * per_token[False], 3),
        "bound_ms_per_step": round(1e3 * per_token[True], 3),
        "ratio": round(per_token[True] / per_token[False], 3),
        "free_first_token_ms": round(1e3 * median[False, 1], 2),
        "bound_first_token_ms": round(1e3 * median[True, 1], 2),
    }


def passes(model: str, options: dict) -> dict:
    """Forward passes with and without jump-forward, per output token."""
    found = {}
    for jump in (True, False):
        with rootlet.Engine(model, disable_jump_forward=not jump, **options) as engine:
            steps = tokens = 0
            engine.generate("Fill in the form: ", {"json_schema": FORM, "max_new_tokens": 4})
            start = time.perf_counter()
            for seed in range(8):
                before = engine.stats().num_steps
                params = {"json_schema": FORM, "max_new_tokens": 200, "temperature": seed % 2, "seed": seed}
                output = engine.generate(f"Fill in the form as JSON for customer {seed}: ", params)
                steps += engine.stats().num_steps - before
                tokens += len(output.token_ids)
            found[jump] = (steps, tokens, time.perf_counter() - start)
    return {
        "load": "form with long keys, one at a time",
        "tokens": found[True][1],
        "passes": found[True][0],
        "passes_without": found[False][0],
        "ratio": round(found[False][0] / found[True][0], 2),
        "seconds": round(found[True][2], 3),
        "seconds_without": round(found[False][2], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="what Engine() loads; it needs a tokenizer")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--options", type=json.loads, default={}, help="engine options as JSON")
    parser.add_argument("--commit", default=None, help="commit that is measured; default: asked of git")
    parser.add_argument("--out", type=Path, default=RESULTS.parent, help="folder for constraints.json")
    args = parser.parse_args()
    rows = []
    with rootlet.Engine(args.model, **args.options) as engine:
        info = engine.get_server_info()
        for name, constraint in (("regex", ENDLESS), ("JSON", JSON)):
            rows.append(compare(engine, name, constraint, args.batch, args.repeats))
            print(rows[-1])
    rows.append(passes(args.model, args.options))
    print(rows[-1])
    on_gpu = info["device"] != "cpu"
    about = {
        "model": Path(args.model).name,
        "device": torch.cuda.get_device_name() if on_gpu else str(machine()["cpu"]),
        "backend": info["grammar_backend"],
        "torch": torch.__version__,
        "commit": args.commit or str(machine()["commit"]),
    }
    file = args.out / "constraints.json"
    kept = json.loads(file.read_text()) if file.exists() else []
    same = ("model", "device", "backend", "load")
    new = {tuple((about | row)[key] for key in same) for row in rows}
    kept = [row for row in kept if tuple(row[key] for key in same) not in new]
    file.write_text(json.dumps(kept + [about | row for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
