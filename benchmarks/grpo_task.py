"""What ``grpo.py`` trains: a model, its prompts and a reward that can be checked without another model."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset

import rootlet

LETTERS = "abcdefghilmnoprstw"
FEWEST = 6  # words: a shorter answer counts as one of so many, lest one word be the best answer
VOCABULARY = 256
WANTED = VOCABULARY // 4  # tokens below this one are rewarded


@dataclass(frozen=True)
class Task:
    """A policy at its start, and what it is asked for.

    Attributes:
        path: what an engine of it is built from.
        model, tokenizer: the same in transformers; to be copied.
        reward: a reward function of TRL, in [0, 1].
        dataset: a column of prompts.
        learning_rate: at which it learns in a hundred steps, all weights being trained.
        prompt_tokens: no prompt has more.
    """

    path: Path
    model: Any
    tokenizer: Any
    reward: Callable[..., list[float]]
    dataset: Dataset
    learning_rate: float
    prompt_tokens: int


def letter_share(prompts: list, completions: list, **_: Any) -> list[float]:
    """The share of each answer's words that begin with the letter at the end of its prompt."""
    shares = []
    for prompt, completion in zip(prompts, completions):
        letter = re.findall(r"letter (\w)", prompt[-1]["content"])[-1]
        words = re.findall(r"[a-z]+", completion[0]["content"].lower())
        shares.append(sum(word[0] == letter for word in words) / max(len(words), FEWEST))
    return shares


def chat_task(path: Path, dtype: str) -> Task:
    """Words that begin with a letter, asked of a chat model: a folder or a GGUF file."""
    place = {"gguf_file": path.name} if path.is_file() else {}
    config = transformers.AutoConfig.from_pretrained(path.parent if place else path, **place)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    # transformers reads GGUF files, but does not train what it read
    with rootlet.Engine(path, dtype=dtype, device="cpu", max_total_tokens=256) as engine:
        model.load_state_dict({name: engine.weight(name) for name in model.state_dict()})
        tokenizer = engine.tokenizer
    ask = "Write words that begin with the letter {}."
    prompts = [[{"role": "user", "content": ask.format(letter)}] for letter in LETTERS]
    return Task(path, model, tokenizer, letter_share, Dataset.from_dict({"prompt": prompts}), 1e-5, 96)


def wanted_share(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """The share of each row's tokens that are wanted ones."""
    return [sum(token < WANTED for token in ids) / len(ids) for ids in completion_ids]


def token_task(folder: Path, dtype: str) -> Task:
    """A small Llama with random weights, which learns to draw some tokens more often than others."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {f"w{index}": index for index in range(VOCABULARY - 2)}
    tokenizer = Tokenizer(
        models.WordLevel({**words, "<unk>": VOCABULARY - 2, "</s>": VOCABULARY - 1}, "<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>", unk_token="<unk>"
    )
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        eos_token_id=VOCABULARY - 1,
        bos_token_id=None,
        dtype=dtype,
    )
    model = transformers.LlamaForCausalLM(config).to(getattr(torch, dtype))
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    prompts = Dataset.from_dict({"prompt": [f"w{i} w{i + 1} w{i + 2}" for i in range(0, 60, 3)]})
    return Task(folder, model, fast, wanted_share, prompts, 1e-3, 8)
