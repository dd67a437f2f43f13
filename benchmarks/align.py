"""How far trainer and engine are apart without ``rootlet.align``, and what it costs that they are not.

    python benchmarks/align.py SmolLM2.gguf                              # a real model; or a folder
    python benchmarks/align.py Q05B                                      # shapes of h100.py, random weights
    python benchmarks/align.py --add OUT/align.json                      # take over rows measured elsewhere

One policy samples from prompts of random tokens (groups of four, temperature 1); the same weights train on
what it sampled, by transformers with its default attention, rows padded on the left as TRL has them. Printed
are the differences of log-probabilities per sampled token, mean and largest, and the KL divergence (k3,
Schulman 2020, of the trainer's to the engine's), of three pairs: a plain engine and transformers, a
deterministic engine and transformers, a deterministic engine and the aligned model, which must be 0. Then the
price: tokens per second of both engines, milliseconds of a training step (forward, backward, AdamW) of both
trainers on the same batch, in turn, medians of ``--repeats`` after one of each that is not counted.
``results/align.json`` keeps the latest row of each (model, device, load).
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from cpu import machine
from deterministic import write
from h100_workloads import MODELS, write_config
from transformers import AutoConfig, AutoModelForCausalLM

import rootlet

RESULTS = Path(__file__).parent / "results" / "align.json"
GROUP = 4  # samples of each prompt


def load(model: str, dtype: torch.dtype, device: str, scratch: Path) -> tuple[torch.nn.Module, Path]:
    """The policy, and a folder with its weights."""
    torch.manual_seed(0)
    if model in MODELS:
        config = AutoConfig.from_pretrained(write_config(model, scratch))
        module = AutoModelForCausalLM.from_config(config)
    elif model.endswith(".gguf"):
        sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))
        from hf_reference import load_gguf_in_transformers  # needs no accelerate

        module = load_gguf_in_transformers(Path(model))
    else:
        module = AutoModelForCausalLM.from_pretrained(model)
    module = module.to(device, dtype).train()
    folder = scratch / "policy"
    module.save_pretrained(folder)
    return module, folder


def roll_out(
    folder: Path, prompts: list[list[int]], args: argparse.Namespace, **options
) -> tuple[list, float]:
    """Outputs, and generated tokens per second: of a second run, from an empty cache."""
    params = {"temperature": 1.0, "max_new_tokens": args.new_tokens, "ignore_eos": True}
    settings = [params | {"seed": seed} for seed in range(len(prompts))]
    room = sum(len(prompt) + args.new_tokens + 64 for prompt in prompts)
    options |= {"dtype": args.dtype, "device": args.device, "max_total_tokens": min(room, 200_000)}
    options["context_length"] = args.prompt_tokens + args.new_tokens + 8
    with rootlet.Engine(str(folder), skip_tokenizer_init=True, **options) as engine:
        for _ in range(2):
            engine.flush_cache()
            start = time.perf_counter()
            outputs = engine.generate(input_ids=prompts, sampling_params=settings, return_logprob=True)
            seconds = time.perf_counter() - start
    gc.collect()
    return outputs, sum(len(output.token_ids) for output in outputs) / seconds


class Batch:
    """Rows padded on the left, and the engine's log-probabilities of the sampled tokens."""

    def __init__(self, prompts: list[list[int]], outputs: list, device: str) -> None:
        rows = [prompt + list(output.token_ids) for prompt, output in zip(prompts, outputs)]
        self.kept = len(outputs[0].token_ids)
        longest = max(map(len, rows))
        self.ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows], device=device)
        mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
        self.mask = torch.tensor(mask, device=device)
        values = [[entry[0] for entry in output.output_token_logprobs] for output in outputs]
        self.expected = torch.tensor(values, dtype=torch.float32, device=device)

    def parts(self, rows: int) -> list[Batch]:
        """Batches of at most so many rows."""
        made = []
        for start in range(0, len(self.ids), rows):
            part = object.__new__(Batch)
            part.kept = self.kept
            for name in ("ids", "mask", "expected"):
                setattr(part, name, getattr(self, name)[start : start + rows])
            made.append(part)
        return made


def by_transformers(module: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Log-probabilities of the sampled tokens: fp32 log_softmax of the module's logits."""
    positions = (batch.mask.cumsum(1) - 1).clamp(min=0)
    logits = module(
        batch.ids,
        attention_mask=batch.mask,
        position_ids=positions,
        use_cache=False,
        logits_to_keep=batch.kept + 1,
    ).logits
    values = torch.log_softmax(logits[:, :-1].float(), -1)
    return values.gather(2, batch.ids[:, -batch.kept :, None]).squeeze(2)


def by_rootlet(module: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """The same of an aligned module."""
    return rootlet.token_logprobs(module, batch.ids, attention_mask=batch.mask, logits_to_keep=batch.kept)


Scores = Callable[[torch.nn.Module, Batch], torch.Tensor]


@torch.no_grad()
def mismatch(module: torch.nn.Module, batch: Batch, scores: Scores, rows: int) -> dict[str, float]:
    """How far the trainer's log-probabilities are from the engine's."""
    values = torch.cat([scores(module, part) for part in batch.parts(rows)])
    gap = (values - batch.expected).double()
    return {
        "mean": gap.abs().mean().item(),
        "max": gap.abs().max().item(),
        "kl_k3": (gap.exp() - 1 - gap).mean().item(),
        "equal": torch.equal(values, batch.expected),
    }


def step_ms(module: torch.nn.Module, batch: Batch, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Milliseconds of an optimizer step by transformers and by an aligned module, and of the CPU's time.

    A learning rate of 0 leaves the weights as they are.
    """
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.0)
    signs = torch.linspace(-1, 1, len(batch.ids), device=args.device)[:, None].expand_as(batch.expected)

    def step(scores: Scores) -> tuple[float, float]:
        start, cpu = time.perf_counter(), time.process_time()
        for part, sign in zip(batch.parts(args.rows), signs.split(args.rows)):
            (-(sign * scores(module, part)).mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
        if args.device == "cuda":
            torch.cuda.synchronize()
        return 1000 * (time.perf_counter() - start), 1000 * (time.process_time() - cpu)

    plain, aligned = [], []
    for _ in range(1 + args.repeats):
        plain.append(step(by_transformers))
        with rootlet.align(module):
            aligned.append(step(by_rootlet))
    found = {"transformers": zip(*plain[1:]), "aligned": zip(*aligned[1:])}
    medians = {who: [round(statistics.median(times), 1) for times in both] for who, both in found.items()}
    return {
        "step_ms": {who: wall for who, (wall, _) in medians.items()},
        "step_cpu_ms": {who: cpu for who, (_, cpu) in medians.items()},
        "step_ratio": round(medians["aligned"][0] / medians["transformers"][0], 3),
        "step_cpu_ratio": round(medians["aligned"][1] / medians["transformers"][1], 3),
    }


def compare(model: str, args: argparse.Namespace) -> dict:
    """The row of one model."""
    dtype = getattr(torch, args.dtype)
    with tempfile.TemporaryDirectory() as scratch:
        module, folder = load(model, dtype, args.device, Path(scratch))
        draw = random.Random(0)
        prompts = []
        for _ in range(args.prompts):
            length = draw.randrange(args.prompt_tokens // 4, args.prompt_tokens + 1)
            prompts += [[draw.randrange(100, 1900) for _ in range(length)]] * GROUP
        plain, plain_rate = roll_out(folder, prompts, args)
        exact, exact_rate = roll_out(folder, prompts, args, deterministic=True)
    plain_batch, exact_batch = (Batch(prompts, outputs, args.device) for outputs in (plain, exact))
    if args.checkpointing:
        module.gradient_checkpointing_enable()
    found = {
        "plain engine, transformers": mismatch(module, plain_batch, by_transformers, args.rows),
        "deterministic engine, transformers": mismatch(module, exact_batch, by_transformers, args.rows),
    }
    with rootlet.align(module):
        found["deterministic engine, aligned"] = mismatch(module, exact_batch, by_rootlet, args.rows)
    lengths = f"{args.prompt_tokens // 4} to {args.prompt_tokens} + {args.new_tokens} tokens"
    return {
        "model": Path(model).name,
        "device": torch.cuda.get_device_name() if args.device == "cuda" else str(machine()["cpu"]),
        "dtype": args.dtype,
        "load": f"{args.dtype}, {len(prompts)} rows of {lengths}, {args.rows} at a time"
        + (", recomputed layers" if args.checkpointing else ""),
        "mismatch": found,
        "rollout_tokens_per_s": {"plain": round(plain_rate, 1), "deterministic": round(exact_rate, 1)},
        "rollout_ratio": round(plain_rate / exact_rate, 3),
        **step_ms(module, exact_batch, args),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": args.commit or str(machine()["commit"]),
        "date": datetime.date.today().isoformat(),
    }


def show(row: dict) -> None:
    print("{model} on {device}: {load}".format(**row))
    for pair, gap in row["mismatch"].items():
        print(f"  {pair:36} |dlogp| mean {gap['mean']:.3g}, max {gap['max']:.3g}; KL (k3) {gap['kl_k3']:.3g}")
    units = {
        "rollout_tokens_per_s": "tokens/s",
        "step_ms": "ms a step",
        "step_cpu_ms": "ms a step of CPU time",
    }
    for what, unit in units.items():
        if what not in row:  # rows of before it was measured
            continue
        print("  " + ", ".join(f"{who} {value} {unit}" for who, value in row[what].items()))
    price = "  price: rollouts x {rollout_ratio}, training steps x {step_ratio}"
    if "step_cpu_ratio" in row:
        price += " ({step_cpu_ratio} of CPU time)"
    print(price.format(**row))


def main() -> None:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", help="TINY, Q05B, L8B, a .gguf file or a folder")
    parser.add_argument("--device", default="cuda" if on_gpu else "cpu")
    parser.add_argument("--dtype", default="bfloat16" if on_gpu else "float32")
    parser.add_argument(
        "--prompts", type=int, default=32 if on_gpu else 2, help=f"each sampled {GROUP} times"
    )
    parser.add_argument("--prompt-tokens", type=int, default=512 if on_gpu else 128)
    parser.add_argument("--new-tokens", type=int, default=256 if on_gpu else 64)
    parser.add_argument("--rows", type=int, default=16 if on_gpu else 8, help="rows of a backward pass")
    parser.add_argument("--repeats", type=int, default=5 if on_gpu else 3)
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing, both trainers")
    parser.add_argument("--commit", default=None, help="commit that is measured; default: asked of git")
    parser.add_argument("--out", type=Path, default=RESULTS, help="file for the rows")
    parser.add_argument("--add", type=Path, help="file of rows to take over instead of measuring")
    args = parser.parse_args()
    rows = json.loads(args.add.read_text()) if args.add else []
    rows += [compare(model, args) for model in args.models]
    for row in rows:
        show(row)
    write(rows, args.out)
    if not all(row["mismatch"]["deterministic engine, aligned"]["equal"] for row in rows):
        raise SystemExit("The aligned model's log-probabilities are not those of the engine.")


if __name__ == "__main__":
    main()
