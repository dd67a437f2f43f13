"""What constraints cost, and what jump-forward saves.

    python benchmarks/constraints.py MODEL                     # a real model: what Engine() loads
    python benchmarks/constraints.py MODEL --shapes L8B        # its tokenizer, dummy layers of Llama-3.1-8B
    python benchmarks/constraints.py MODEL --batches '[64]' --loads records --temperatures '[0]' --tokens 40
    python benchmarks/constraints.py MODEL --in-turns          # on a machine shared with others

Every load runs constrained and free, so many requests at once: the same prompts, the same number of
tokens (the constraints go on for longer). Per-token time is (t(long) - t(short)) divided by the difference
of the lengths, so that prefill and admission drop out; wall clock, the fastest of ``--repeats``, the two
kinds in turns. ``first token`` is the time to one token of all requests, with the grammar cached: the median
of 21 runs of each kind in turns, and the median of the ratios of neighbours. The passes of jump-forward are
counted on a schema with long fixed keys.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from cpu import machine
from h100_workloads import MODELS, write_config
from tqdm import tqdm

import rootlet
from rootlet.models.tokenizer import load_tokenizer

RESULTS = Path(__file__).parent / "results" / "constraints.json"
SHORT = 8
FIRSTS = 21
RECORD = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1},
        "quantity": {"type": "integer", "minimum": 1},
        "tags": {"type": "array", "items": {"enum": ["new", "used", "fragile"]}, "minItems": 1},
        "price": {"type": "number"},
    },
}
RECORD["required"] = list(RECORD["properties"])
LOADS = {  # all of them endless
    "regex": {"regex": r"([A-Za-z0-9 ,.]|\n)*END"},
    "integers": {
        "json_schema": {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1000}
    },
    "records": {"json_schema": {"type": "array", "items": RECORD, "minItems": 1000}},
}
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


def seconds(engine: rootlet.Engine, prompts: list[str], params: dict, num_tokens: int) -> float:
    """Wall clock of all prompts, each with exactly that many tokens."""
    params = {"seed": 1, "max_new_tokens": num_tokens, "ignore_eos": True, **params}
    start = time.perf_counter()
    outputs = engine.generate(prompts, params)
    elapsed = time.perf_counter() - start
    assert all(len(output.token_ids) == num_tokens for output in outputs)
    return elapsed


def compare(
    engine: rootlet.Engine, load: str, temperature: float, batch: int, tokens: int, repeats: int
) -> dict:
    """Per-token and first-token times of one constraint beside none."""
    prompts = [f"Report number {i}:" for i in range(batch)]
    times: dict[tuple[bool, int], list[float]] = {}
    kinds = [
        (bound, {"temperature": temperature} | (LOADS[load] if bound else {})) for bound in (False, True)
    ]
    for _ in range(1 + repeats):  # the first compiles and warms up
        for (bound, params), count in itertools.product(kinds, (SHORT, tokens)):
            times.setdefault((bound, count), []).append(seconds(engine, prompts, params, count))
    firsts = [[seconds(engine, prompts, params, 1) for _, params in kinds] for _ in range(FIRSTS)]
    best = {key: min(values[1:]) for key, values in times.items()}
    per_token = {
        bound: (best[bound, tokens] - best[bound, SHORT]) / (tokens - SHORT) for bound in (False, True)
    }
    return {
        "load": f"{load}, temperature {temperature:g}, {batch} at once",
        "free_ms_per_token": round(1e3 * per_token[False], 3),
        "bound_ms_per_token": round(1e3 * per_token[True], 3),
        "ratio": round(per_token[True] / per_token[False], 3),
    } | first_tokens(firsts)


def first_tokens(firsts: list[list[float]]) -> dict:
    """Medians of pairs of seconds, free and bound."""
    free, bound = (statistics.median(column) for column in zip(*firsts))
    return {
        "free_first_token_ms": round(1e3 * free, 2),
        "bound_first_token_ms": round(1e3 * bound, 2),
        "first_token_ratio": round(statistics.median(b / f for f, b in firsts), 3),
    }


def in_turns(model: str, options: dict, load: str, temperature: float, batch: int, tokens: int) -> dict:
    """The same by two engines, one step of each at a time: what disturbs a shared machine meets both.

    Per-token times are medians, their ratio is the median of those of neighbouring steps. First tokens are
    those of one request.
    """
    params = {"temperature": temperature, "seed": 1, "ignore_eos": True}
    with contextlib.ExitStack() as stack:
        engines = [
            (stack.enter_context(rootlet.Engine(model, step_by_hand=True, **options)), constraint)
            for constraint in ({}, LOADS[load])
        ]
        firsts, steps = [], []
        for _ in range(1 + FIRSTS):  # the first compiles
            pair = []
            for engine, constraint in engines:
                start = time.perf_counter()
                engine.generate("Report number 1:", {**params, **constraint, "max_new_tokens": 1})
                pair.append(time.perf_counter() - start)
            firsts.append(pair)
        for engine, constraint in engines:
            for i in range(batch):
                asked = {**params, **constraint, "max_new_tokens": 4 * tokens}
                engine.submit(f"Report number {i}:", asked)
            while engine.stats().num_generated_tokens < 3 * batch:
                engine.step()
        for _ in range(tokens):
            pair = []
            for engine, _ in engines:
                before, start = engine.stats().num_generated_tokens, time.perf_counter()
                engine.step()
                elapsed = time.perf_counter() - start
                pair.append(elapsed * batch / (engine.stats().num_generated_tokens - before))
            steps.append(pair)
    free, bound = (statistics.median(column) for column in zip(*steps))
    return {
        "load": f"{load}, temperature {temperature:g}, {batch} at once, step by step in turns",
        "free_ms_per_token": round(1e3 * free, 3),
        "bound_ms_per_token": round(1e3 * bound, 3),
        "ratio": round(statistics.median(b / f for f, b in steps), 3),
    } | first_tokens(firsts[1:])


def passes(model: str, options: dict, batches: list[int]) -> Iterator[dict]:
    """Forward passes and time with and without jump-forward, for forms that come so many at once."""
    found = {}
    for jump in (True, False):
        with rootlet.Engine(model, disable_jump_forward=not jump, **options) as engine:
            for batch in batches:
                fill_in(engine, range(batch))  # compiles and warms up
                seeds = range(max(8, batch))
                rounds = [fill_in(engine, seeds[i : i + batch]) for i in range(0, len(seeds), batch)]
                found[batch, jump] = [sum(column) for column in zip(*rounds)]
    for batch in batches:
        (count, tokens, elapsed), (plain_count, _, plain_elapsed) = found[batch, True], found[batch, False]
        yield {
            "load": f"form with long keys, {batch} at once",
            "tokens": tokens,
            "passes": count,
            "passes_without": plain_count,
            "ratio": round(plain_count / count, 2),
            "seconds": round(elapsed, 3),
            "seconds_without": round(plain_elapsed, 3),
        }


def fill_in(engine: rootlet.Engine, seeds: range) -> tuple[int, int, float]:
    """Forward passes, tokens and seconds of a form for each seed, the grammar cached."""
    prompts = [f"Fill in the form as JSON for customer {seed}: " for seed in seeds]
    params = [
        {"json_schema": FORM, "max_new_tokens": 200, "temperature": seed % 2, "seed": seed} for seed in seeds
    ]
    before = engine.stats().num_steps
    start = time.perf_counter()
    outputs = engine.generate(prompts, params)
    elapsed = time.perf_counter() - start
    return engine.stats().num_steps - before, sum(len(o.token_ids) for o in outputs), elapsed


@contextlib.contextmanager
def loadable(model: str, shapes: str | None) -> Iterator[tuple[str, dict]]:
    """What Engine() loads, and the options it takes for that."""
    if shapes is None:
        yield model, {}
        return
    with tempfile.TemporaryDirectory() as root:
        folder = write_config(shapes, Path(root))
        config = json.loads((folder / "config.json").read_text())
        config["vocab_size"] = len(load_tokenizer(model))
        (folder / "config.json").write_text(json.dumps(config))
        yield str(folder), {"load_format": "dummy", "dtype": "bfloat16", "tokenizer_path": model}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="what Engine() loads; it needs a tokenizer")
    parser.add_argument("--shapes", choices=MODELS, help="layers of this model instead, with dummy weights")
    parser.add_argument("--batches", type=json.loads, default=[1, 64], metavar="JSON")
    parser.add_argument("--loads", default=",".join(LOADS), help="separated by commas; may be empty")
    parser.add_argument("--temperatures", type=json.loads, default=[0, 1], metavar="JSON")
    parser.add_argument("--tokens", type=int, default=136, help="length of the long runs")
    parser.add_argument("--in-turns", action="store_true", help="one step of each kind at a time")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--options", type=json.loads, default={}, help="engine options as JSON")
    parser.add_argument("--commit", default=None, help="commit that is measured; default: asked of git")
    parser.add_argument("--out", type=Path, default=RESULTS.parent, help="folder for constraints.json")
    args = parser.parse_args()
    cases = list(itertools.product(filter(None, args.loads.split(",")), args.temperatures, args.batches))
    rows = []
    with loadable(args.model, args.shapes) as (model, options):
        options |= args.options
        with rootlet.Engine(model, **options) as engine:
            info = engine.get_server_info()
            for case in tqdm([] if args.in_turns else cases):
                rows.append(compare(engine, *case, args.tokens, args.repeats))
                tqdm.write(str(rows[-1]))
        for case in tqdm(cases if args.in_turns else []):
            rows.append(in_turns(model, options, *case, args.tokens))
            tqdm.write(str(rows[-1]))
        for row in passes(model, options, args.batches):
            rows.append(row)
            print(row)
    on_gpu = info["device"] != "cpu"
    about = {
        "model": Path(args.model).name,
        "shapes": args.shapes,
        "device": torch.cuda.get_device_name() if on_gpu else str(machine()["cpu"]),
        "backend": info["grammar_backend"],
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
        "commit": args.commit or str(machine()["commit"]),
    }
    file = args.out / "constraints.json"
    kept = json.loads(file.read_text()) if file.exists() else []
    same = ("model", "shapes", "device", "backend", "load")
    new = {tuple((about | row)[key] for key in same) for row in rows}
    kept = [row for row in kept if tuple(row[key] for key in same) not in new]
    file.write_text(json.dumps(kept + [about | row for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
