"""A GRPO run of TRL on the engine, beside the same trainer with transformers' own generation.

    python benchmarks/grpo.py SmolLM2-135M-Instruct.Q4_1.gguf --steps 100 --out OUT/grpo.json --commit COMMIT
    python benchmarks/grpo.py --steps 40                      # a small random model, on any device
    python benchmarks/grpo.py --add OUT/grpo.json             # take over a run that was measured elsewhere

A chat model is asked for words that begin with a letter, and its reward is their share (as in
``examples/grpo_trl.py``); the random one gets the share of its tokens that are in a set. Both generations
start from the same weights, with the same prompts and parameters; rows are drawn from different random
streams. Of every step:

- ``sync_s``: pushing the trainer's weights to the engine (transformers: 0)
- ``generate_s``: drawing all rows, from token ids to token ids
- ``step_s``: the whole step, forward and backward passes and the optimizer included
- ``rollouts_per_s``: rows / (sync_s + generate_s), from medians over the steps after the first two
- ``mismatch``: TRL's ``sampling/sampling_logp_difference/max``, and its mean
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from grpo_task import Task, chat_task, token_task
from h100_results import context
from transformers import TrainerCallback

import rootlet
from rootlet.integrations.trl import attach

RESULTS = Path(__file__).parent / "results" / "grpo.json"
WARM = 2  # steps that are not counted in medians: compilations, first allocations


class StepTimes(TrainerCallback):
    """Seconds of each step, from the end of the one before."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._last = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._last = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        now = time.perf_counter()
        self.seconds.append(now - self._last)
        self._last = now


class Clock:
    """Seconds that a method of an object takes, per call."""

    def __init__(self, owner: Any, name: str) -> None:
        self.seconds: list[float] = []
        call = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self.seconds.append(time.perf_counter() - begin)

        setattr(owner, name, timed)


def make_trainer(task: Task, args: argparse.Namespace) -> Any:
    """A fresh GRPOTrainer of the task's weights."""
    from trl import GRPOConfig, GRPOTrainer

    lora = None
    if args.lora:
        from peft import LoraConfig

        lora = LoraConfig(r=16, target_modules="all-linear")
    return GRPOTrainer(
        model=copy.deepcopy(task.model),
        processing_class=copy.deepcopy(task.tokenizer),
        reward_funcs=task.reward,
        train_dataset=task.dataset,
        peft_config=lora,
        args=GRPOConfig(
            output_dir=tempfile.gettempdir(),
            max_steps=args.steps,
            per_device_train_batch_size=args.prompts * args.generations,
            num_generations=args.generations,
            max_completion_length=args.tokens,
            learning_rate=args.learning_rate or task.learning_rate * (20 if args.lora else 1),
            lr_scheduler_type="constant",
            gradient_checkpointing=False,
            bf16=args.dtype == "bfloat16",
            use_cpu=args.device == "cpu",
            seed=args.seed,
            logging_steps=1,
            save_strategy="no",
            dataloader_pin_memory=False,
            report_to="none",
            disable_tqdm=True,
        ),
    )


def run(task: Task, generation: str, args: argparse.Namespace) -> dict[str, Any]:
    """Train with one kind of generation: what each step took and brought."""
    trainer = make_trainer(task, args)
    steps = StepTimes()
    trainer.add_callback(steps)
    if generation == "transformers":
        drawn = Clock(trainer, "_generate_single_turn")  # TRL's, of its own generation all there is to time
        trainer.train()
        syncs = [0.0] * len(drawn.seconds)
    else:
        room = args.prompts * args.generations * (task.prompt_tokens + args.tokens)
        options = {"dtype": args.dtype, "device": args.device, "max_total_tokens": max(4096, 2 * room)}
        with rootlet.Engine(task.path, **options) as engine:
            if generation == "shared":
                engine.share_weights(trainer.model)
            with attach(trainer, engine) as stand_in:
                sync = Clock(stand_in, "sync_weights")
                drawn = Clock(stand_in, "generate")
                trainer.train()
        syncs = sync.seconds
    times = (steps.seconds, syncs, drawn.seconds)
    return {"generation": generation, **summary(trainer.state.log_history, times, args)}


def summary(log: list[dict], times: tuple[list[float], ...], args: argparse.Namespace) -> dict[str, Any]:
    """Steps, and medians of those that count; ``times``: of whole steps, of pushing weights, of drawing."""
    logged = [entry for entry in log if "reward" in entry]
    steps = [
        {
            "reward": entry["reward"],
            "step_s": step,
            "sync_s": sync,
            "generate_s": seconds,
            "tokens": entry["completions/mean_length"],
            "mismatch": entry.get("sampling/sampling_logp_difference/max"),
            "mismatch_mean": entry.get("sampling/sampling_logp_difference/mean"),
        }
        for entry, step, sync, seconds in zip(logged, *times, strict=True)
    ]
    counted = steps[WARM:] or steps
    medians = {key: statistics.median(s[key] for s in counted) for key in ("step_s", "sync_s", "generate_s")}
    rows = args.prompts * args.generations
    tenth = max(1, len(steps) // 10)
    mismatches = [step["mismatch"] for step in steps if step["mismatch"] is not None]
    return {
        **medians,
        "rows": rows,
        "rollouts_per_s": rows / (medians["sync_s"] + medians["generate_s"]),
        "reward_first": statistics.mean(step["reward"] for step in steps[:tenth]),
        "reward_last": statistics.mean(step["reward"] for step in steps[-tenth:]),
        "mismatch": max(mismatches, default=None),
        "steps": steps,
    }


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The arguments of a run."""
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", type=Path, help="a folder or GGUF file; none: a random one")
    parser.add_argument("--generation", default="rootlet,transformers", help="which, also: shared")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--compare-steps", type=int, help="fewer steps for transformers' generation")
    parser.add_argument("--prompts", type=int, default=4, help="per step")
    parser.add_argument("--generations", type=int, default=8, help="rows per prompt")
    parser.add_argument("--tokens", type=int, default=32, help="of a row, at most")
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--device", default="cuda" if on_gpu else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--commit")
    parser.add_argument("--add", type=Path, help="take over this file; nothing is run")
    return parser.parse_args(arguments)


def keep(result: dict[str, Any], path: Path) -> None:
    """Write a result to a file of them, in place of the last one of its device and model."""

    def name_of(result: dict[str, Any]) -> tuple[str, str]:
        return result["device"], result["settings"]["model"]

    path.parent.mkdir(parents=True, exist_ok=True)
    others = json.loads(path.read_text()) if path.exists() else []
    results = [other for other in others if name_of(other) != name_of(result)] + [result]
    path.write_text(json.dumps(results, indent=1) + "\n")


def main() -> None:
    args = parse()
    if args.add:
        for result in json.loads(args.add.read_text()):
            keep(result, RESULTS)
        return
    # what others did meanwhile: above nothing, seconds on a CPU say little
    load = round(os.getloadavg()[0] / (os.cpu_count() or 1), 2)
    with tempfile.TemporaryDirectory() as folder:
        task = chat_task(args.model, args.dtype) if args.model else token_task(Path(folder), args.dtype)
        runs = []
        for generation in args.generation.split(","):
            settings = copy.copy(args)
            if generation == "transformers" and args.compare_steps:
                settings.steps = args.compare_steps
            runs.append(run(task, generation, settings))
            gc.collect()
            torch.cuda.empty_cache()
            shown = {key: value for key, value in runs[-1].items() if key != "steps"}
            print(json.dumps(shown), file=sys.stderr)
    left_out = ("out", "commit", "add", "device")
    settings = {key: value for key, value in vars(args).items() if key not in left_out}
    settings["model"] = args.model.stem if args.model else "random"
    result = {**context(args.commit, torch.device(args.device)), "load_per_core": load, "settings": settings}
    keep({**result, "runs": runs}, args.out)


if __name__ == "__main__":
    main()
