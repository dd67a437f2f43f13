"""Rollouts of a deterministic engine, and what an aligned trainer makes of them."""

from __future__ import annotations

from typing import NamedTuple

import torch

import rootlet

from ..models.hf import random_ids

PROMPTS = [random_ids(n, seed=n) for n in (1, 5, 40, 64, 100)]
PROMPTS += [PROMPTS[3] + random_ids(9, seed=7), *PROMPTS[2:]]  # shared beginnings, and repetitions
NEW = 16


class Rollout(NamedTuple):
    """What an engine made of a prompt; ``logprobs`` fp32 of ``tokens``."""

    prompt: list[int]
    tokens: list[int]
    logprobs: torch.Tensor
    cached: int


def rollouts(
    engine: rootlet.Engine, temperature: float, prompts: list[list[int]] = PROMPTS, **options
) -> list[Rollout]:
    """Two samples of each prompt, with log-probabilities."""
    params = {"temperature": temperature, "max_new_tokens": NEW, "ignore_eos": True}
    params |= {name: options.pop(name) for name in ("top_p", "top_k") if name in options}
    prompts = [prompt for prompt in prompts for _ in range(2)]
    seeded = [params | {"seed": seed} for seed in range(len(prompts))]
    outputs = engine.generate(input_ids=prompts, sampling_params=seeded, return_logprob=True, **options)
    return [
        Rollout(prompt, list(o.token_ids), logprobs(o), o.cached_tokens)
        for prompt, o in zip(prompts, outputs)
    ]


def logprobs(output: rootlet.RequestOutput) -> torch.Tensor:
    """The engine's log-probabilities of its tokens, fp32; nothing is lost, for each was fp32."""
    return torch.tensor([entry[0] for entry in output.output_token_logprobs], dtype=torch.float32)


def sequences(made: list[Rollout]) -> list[list[int]]:
    return [rollout.prompt + rollout.tokens for rollout in made]


def assert_equal(made: list[Rollout], values: list[torch.Tensor]) -> None:
    """``values`` are token_logprobs of :func:`sequences`: the engine's to the last bit."""
    for index, (rollout, value) in enumerate(zip(made, values, strict=True)):
        assert value.dtype is torch.float32
        found = value[-len(rollout.tokens) :].detach().cpu()
        assert torch.equal(found, rollout.logprobs), f"rollout {index}"


def train(module: torch.nn.Module, optimizer: torch.optim.Optimizer, made: list[Rollout]) -> None:
    """One step of policy gradient with made-up advantages."""
    values = rootlet.token_logprobs(module, sequences(made))
    signs = [1.0 if index % 2 else -1.0 for index in range(len(made))]
    loss = -sum(sign * value[-NEW:].mean() for sign, value in zip(signs, values))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
