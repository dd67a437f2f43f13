"""Tiny random models of transformers, and ours loaded with the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from rootlet.models.build import build_model
from rootlet.models.config import ModelConfig
from rootlet.models.registry import resolve

TINY = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Models this small are ten times slower on threads that wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build_hf(
    family: str, seed: int = 0, kind: str = "ForCausalLM", **fields: Any
) -> transformers.PreTrainedModel:
    """A ``<family><kind>`` of transformers with weights large enough to tell mistakes apart."""
    config = getattr(transformers, f"{family}Config")(**{**TINY, **fields})
    config.architectures = [f"{family}{kind}"]
    config._attn_implementation = "eager"
    model = getattr(transformers, f"{family}{kind}")(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.2 * noise if "norm" in name else 0.2 * noise)
    return model


def state_of(hf: transformers.PreTrainedModel) -> dict[str, torch.Tensor]:
    """The checkpoint that transformers would save: tied weights once."""
    state = hf.state_dict()
    if hf.config.tie_word_embeddings:
        del state["lm_head.weight"]
    return state


def config_of(hf: transformers.PreTrainedModel, **overrides: Any) -> ModelConfig:
    """Our reading of the ``config.json`` that transformers would write."""
    return ModelConfig.from_dict(hf.config.to_dict() | overrides)


def build_ours(hf: transformers.PreTrainedModel, dtype: torch.dtype = torch.float32, **overrides: Any) -> Any:
    """Our model of the same configuration and weights."""
    config = config_of(hf, **overrides)
    model = build_model(resolve(config.architectures), config, dtype, "cpu")
    model.load_weights(state_of(hf).items())
    return model


def hf_logits(hf: transformers.PreTrainedModel, ids: list[int]) -> torch.Tensor:
    """Logits ``[len(ids), V]`` of one uncached pass over a sequence."""
    with torch.inference_mode():
        return hf(torch.tensor([ids]), use_cache=False).logits[0].float()


@torch.inference_mode()
def hf_embedding(hf: transformers.PreTrainedModel, ids: list[int]) -> torch.Tensor:
    """State ``[H]`` of a bare model after the last of ``ids``, of length 1, on the CPU."""
    states = hf(torch.tensor([ids], device=hf.device), use_cache=False).last_hidden_state
    return torch.nn.functional.normalize(states[0, -1], dim=-1).cpu()


@torch.inference_mode()
def hf_scores(hf: transformers.PreTrainedModel, ids: list[int]) -> torch.Tensor:
    """Scores ``[labels]`` of a classifier, on the CPU."""
    return hf(torch.tensor([ids], device=hf.device), use_cache=False).logits[0].cpu()


def hf_greedy(hf: transformers.PreTrainedModel, ids: list[int], count: int) -> list[int]:
    """Greedy continuation, the whole sequence computed anew for every token."""
    ids = list(ids)
    for _ in range(count):
        ids.append(int(hf_logits(hf, ids)[-1].argmax()))
    return ids[-count:]


def random_ids(count: int, seed: int, vocab_size: int = TINY["vocab_size"]) -> list[int]:
    """A random prompt."""
    return torch.randint(vocab_size, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def assert_logits_close(got: torch.Tensor, want: torch.Tensor, tolerance: float = 5e-5) -> None:
    """fp32 rounding apart, the same logits; they must be large enough for the tolerance to mean something."""
    assert want.abs().max() > 1
    torch.testing.assert_close(got, want, atol=tolerance, rtol=tolerance)
