"""Tiny random models of transformers, saved to folders, and requests for them."""

from __future__ import annotations

import random
from functools import cache

import torch

import rootlet

from ..models.hf import build_hf

CONTEXT = 1024
WIDE = {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}  # head_dim 64
FAMILIES = {
    "llama": ("Llama", {}),
    "llama-head-128": ("Llama", {"head_dim": 128, "num_key_value_heads": 1}),
    "llama-odd-heads": ("Llama", {"hidden_size": 72, "num_attention_heads": 9, "num_key_value_heads": 3}),
    "mistral-window": ("Mistral", {"sliding_window": 40}),
    "mistral-window-5": ("Mistral", {"sliding_window": 5}),
    "qwen2": ("Qwen2", WIDE),
    "qwen2-tied": ("Qwen2", {"tie_word_embeddings": True}),
}


@cache
def reference(family: str):
    """transformers' model in fp32 on the GPU."""
    name, fields = FAMILIES[family]
    return build_hf(name, max_position_embeddings=CONTEXT, **fields).cuda()


def saved(family: str, root) -> str:
    """A folder with the model of :func:`reference`."""
    folder = root / family
    if not folder.exists():
        reference(family).save_pretrained(folder)
    return str(folder)


def build(folder, **options) -> rootlet.Engine:
    """An engine in fp32 with room for about a dozen long requests."""
    options = {"dtype": "float32", "max_total_tokens": 16_384, "device": "cuda"} | options
    return rootlet.Engine(folder, skip_tokenizer_init=True, **options)


def random_prompt(length: int, seed: int) -> list[int]:
    """Token ids that every model here has."""
    return random.Random(seed).choices(range(97), k=length)


def requests() -> tuple[list[list[int]], list[int]]:
    """Prompts and output lengths: 20 of all sizes, 12 behind one prefix, 6 behind another.

    Output lengths differ, so that a batch shrinks through the sizes that graphs are captured for.
    """
    lengths = [1, 2, 3, 15, 16, 17, 31, 33, 48, 63, 64, 65, 100, 127, 129, 200, 255, 257, 300, 513]
    prompts = [random_prompt(length, seed) for seed, length in enumerate(lengths)]
    long, short = random_prompt(300, 100), random_prompt(45, 101)
    prompts += [long + random_prompt(1 + 3 * i, 200 + i) for i in range(12)]
    prompts += [short + random_prompt(2 + i, 300 + i) for i in range(6)]
    sizes = random.Random(7)
    sizes.shuffle(prompts)
    return prompts, [sizes.randint(1, 40) for _ in prompts]


def generate(engine, prompts, output_lengths, *, batch_size=None, **params) -> list[list[int]]:
    """Token ids of each prompt; ``batch_size`` sends them in pieces, one after the other."""
    size = batch_size or len(prompts)
    shared = {"temperature": 0, "ignore_eos": True} | params
    tokens = []
    for first in range(0, len(prompts), size):
        chosen = slice(first, first + size)
        settings = [shared | {"max_new_tokens": n} for n in output_lengths[chosen]]
        outputs = engine.generate(input_ids=prompts[chosen], sampling_params=settings)
        tokens += [list(output.token_ids) for output in outputs]
    return tokens


@torch.inference_mode()
def logits_after(model, prompt: list[int], output: list[int]) -> torch.Tensor:
    """The model's own logits ``[len(output), V]`` for each place of ``output``, in fp32, from one pass."""
    ids = torch.tensor([prompt + output[:-1]], device=model.device)
    return model(ids, use_cache=False).logits[0, len(prompt) - 1 :].float()


def logit_gaps(model, prompt: list[int], output: list[int]) -> torch.Tensor:
    """By how much each generated token misses the largest logit that ``model`` has in its place.

    0 where both agree. Up to the first difference this walks the reference's own greedy sequence; after
    it, what the reference would say next to our tokens.
    """
    logits = logits_after(model, prompt, output)
    chosen = torch.tensor(output, device=logits.device)[:, None]
    return logits.amax(-1) - logits.gather(1, chosen)[:, 0]
