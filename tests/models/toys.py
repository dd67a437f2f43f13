"""What tests of toy families share: checkpoints of random weights, and a greedy loop over plain logits."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import rootlet
from rootlet.models import registry
from rootlet.models.build import build_model
from rootlet.models.config import ModelConfig
from rootlet.models.loader import load_model
from rootlet.models.registry import resolve

from .gpu_driver import GpuDriver

TINY = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
PROMPTS = [[5 + (7 * i + 3 * j) % 50 for j in range(n)] for i, n in enumerate((23, 5, 9))]
NUM_TOKENS = 12


def save_toy(folder: Path, architecture: str, *, norm: float = 1.0) -> tuple[str, dict[str, torch.Tensor]]:
    """Write a checkpoint of a registered architecture: its folder, and its weights by name.

    Weights of norms lie around ``norm``, all others around 0.
    """
    raw = {"architectures": [architecture], **TINY}
    (folder / "config.json").write_text(json.dumps(raw))
    model = build_toy(raw)
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: norm * ("norm" in name and "weight" in name) + 0.2 * torch.randn(shape, generator=generator)
        for name, shape in model.weight_shapes.items()
    }
    save_file(weights, folder / "model.safetensors")
    return str(folder), weights


@contextmanager
def registered_toy(
    folder: Path,
    family: type,
    plain_logits: Callable[[dict[str, torch.Tensor], list[int]], torch.Tensor],
    **options: float,
) -> Iterator[tuple[str, list[list[int]]]]:
    """The folder of a checkpoint of ``family``, registered meanwhile, and what the plain model generates.

    ``options`` are those of :func:`save_toy`.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_registered", {})
        rootlet.register_model(family.__name__, family)
        path, weights = save_toy(folder, family.__name__, **options)
        yield path, [greedy(lambda ids: plain_logits(weights, ids), prompt) for prompt in PROMPTS]


def build_toy(raw: dict[str, object]):
    """Our model of a config, without weights."""
    config = ModelConfig.from_dict(raw)
    return build_model(resolve(config.architectures), config, torch.float32, "cpu")


def greedy(logits_of: Callable[[list[int]], torch.Tensor], prompt: list[int]) -> list[int]:
    """The whole sequence computed anew for every token; logits ``[V]`` are those after the last."""
    ids = list(prompt)
    for _ in range(NUM_TOKENS):
        ids.append(int(logits_of(ids).argmax()))
    return ids[len(prompt) :]


def rotated(x: torch.Tensor, theta: float = 10_000.0) -> torch.Tensor:
    """Rotary embedding of x ``[n, heads, D]`` at positions 0..n-1."""
    half = x.shape[-1] // 2
    frequencies = theta ** (-torch.arange(half, dtype=torch.float32) / half)
    angles = (torch.arange(len(x), dtype=torch.float32)[:, None] * frequencies)[:, None]
    first, second = x[..., :half], x[..., half:]
    return torch.cat(
        (first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()), dim=-1
    )


def check_on_the_cpu(folder: str, want: list[list[int]], **options: object) -> None:
    """An engine generates the plain model's tokens."""
    with rootlet.Engine(
        folder, device="cpu", skip_tokenizer_init=True, max_total_tokens=512, **options
    ) as engine:
        outputs = engine.generate(
            input_ids=PROMPTS, sampling_params={"temperature": 0, "max_new_tokens": NUM_TOKENS}
        )
    assert [list(output.token_ids) for output in outputs] == want


def check_by_gpu_kernels(folder: str, want: list[list[int]]) -> None:
    """So do the kernels of a GPU: a whole sequence, and two prompts in pieces, with wanted tokens."""
    driver = GpuDriver(load_model(folder).model, page_size=16, num_pages=32)
    assert driver.greedy("a", PROMPTS[1], 3) == want[1][:3]
    logits = driver.step({"b": PROMPTS[0][:9], "c": PROMPTS[2][:1]})
    logits = driver.step({"b": PROMPTS[0][9:], "c": PROMPTS[2][1:]}, wanted=["b", "c"])
    assert [int(logits[name][-1].argmax()) for name in "bc"] == [want[0][0], want[2][0]]
