"""GRPO on the engine: a small model learns to answer with words that begin with the letter it is asked for.

    pip install '.[trl]' peft                          # in Rootlet's folder, with Python 3.11 or newer
    python examples/grpo_trl.py SmolLM2-135M-Instruct.Q4_1.gguf --steps 30 --out rewards.jsonl

The reward needs no model: the share of an answer's words that begin with the letter. A step on two CPU
cores takes about half a minute, on a GPU a second; ``--prompts``, ``--generations`` and ``--tokens`` say how
much it draws. Trained are LoRA adapters, with ``--full`` all weights. Every step is a line of ``--out``: its
number, the reward, and how far the log-probabilities of engine and trainer are apart.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
from pathlib import Path
from typing import Any

import rootlet
from rootlet.integrations.trl import attach

LETTERS = "abcdefghilmnoprstw"
FEWEST = 6  # words: a shorter answer counts as one of so many, lest one word be the best answer


def reward(prompts: list, completions: list, **_: Any) -> list[float]:
    """The share of each answer's words that begin with the letter at the end of its prompt."""
    shares = []
    for prompt, completion in zip(prompts, completions):
        letter = re.findall(r"letter (\w)", prompt[-1]["content"])[-1]
        words = re.findall(r"[a-z]+", completion[0]["content"].lower())
        shares.append(sum(word[0] == letter for word in words) / max(len(words), FEWEST))
    return shares


def make_trainer(model: Path, engine: rootlet.Engine, args: argparse.Namespace) -> Any:
    """A GRPOTrainer of the engine's weights; transformers reads GGUF files, but does not train these."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoConfig, AutoModelForCausalLM
    from trl import GRPOConfig, GRPOTrainer

    place = {"gguf_file": model.name} if model.is_file() else {}
    config = AutoConfig.from_pretrained(model.parent if place else model, **place)
    policy = AutoModelForCausalLM.from_config(config, dtype="float32")
    policy.load_state_dict({name: engine.weight(name) for name in policy.state_dict()})
    ask = "Write words that begin with the letter {}."
    prompts = [[{"role": "user", "content": ask.format(letter)}] for letter in LETTERS]
    return GRPOTrainer(
        model=policy,
        processing_class=copy.deepcopy(engine.tokenizer),
        reward_funcs=reward,
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        peft_config=None if args.full else LoraConfig(r=16, target_modules="all-linear"),
        args=GRPOConfig(
            output_dir=str(args.out.parent),
            max_steps=args.steps,
            per_device_train_batch_size=args.prompts * args.generations,
            num_generations=args.generations,
            max_completion_length=args.tokens,
            learning_rate=args.learning_rate or (2e-5 if args.full else 5e-4),
            lr_scheduler_type="constant",
            gradient_checkpointing=False,  # saves memory, which a small model has enough of, for time
            bf16=False,  # trainer and engine compute in fp32: attach() refuses a pair that does not
            seed=args.seed,
            logging_steps=1,
            save_strategy="no",
            dataloader_pin_memory=False,
            report_to="none",
            disable_tqdm=True,
        ),
    )


def main() -> None:
    """Train, write the rewards, and ask the trained engine for a letter that was not among the prompts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="a folder of safetensors, or a GGUF file; of a chat model")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--prompts", type=int, default=2, help="per step")
    parser.add_argument("--generations", type=int, default=8, help="answers per prompt")
    parser.add_argument("--tokens", type=int, default=24, help="of an answer, at most")
    parser.add_argument("--full", action="store_true", help="train all weights")
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("rewards.jsonl"))
    args = parser.parse_args()

    room = args.prompts * args.generations * (64 + args.tokens)
    with rootlet.Engine(args.model, dtype="float32", max_total_tokens=max(2048, room)) as engine:
        trainer = make_trainer(args.model, engine, args)
        with attach(trainer, engine) as generation:
            trainer.train()
            generation.sync_weights()  # the engine goes on with the last weights
        with args.out.open("w") as file:
            for entry in trainer.state.log_history:
                if "reward" in entry:
                    mismatch = entry["sampling/sampling_logp_difference/max"]
                    line = {"step": entry["step"], "reward": entry["reward"], "mismatch": mismatch}
                    file.write(json.dumps(line) + "\n")
        question = [{"role": "user", "content": "Write words that begin with the letter k."}]
        print(engine.chat(question, {"max_new_tokens": args.tokens, "seed": 1}).content)


if __name__ == "__main__":
    main()
