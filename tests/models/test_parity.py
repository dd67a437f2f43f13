"""Every family gives the logits of transformers, however a sequence is cut into steps."""

from __future__ import annotations

from functools import cache

import pytest
import torch
import transformers

from .driver import Driver
from .hf import assert_logits_close, build_hf, build_ours, hf_greedy, hf_logits, one_thread, random_ids  # noqa: F401

CASES = {
    "llama": ("Llama", {}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True}),
    "llama-odd-heads": ("Llama", {"hidden_size": 72, "num_attention_heads": 9, "num_key_value_heads": 3}),
    "llama-one-kv-head": ("Llama", {"num_key_value_heads": 1}),
    "llama-no-groups": ("Llama", {"num_key_value_heads": 4}),
    "llama-wide-heads": ("Llama", {"head_dim": 24}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-gelu": ("Llama", {"hidden_act": "gelu"}),
    "llama-gelu-tanh": ("Llama", {"hidden_act": "gelu_pytorch_tanh"}),
    "llama-theta": ("Llama", {"rope_theta": 500.0}),
    "llama-linear": ("Llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.5}}),
    "llama-dynamic": ("Llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}),
    "llama-llama3": (
        "Llama",
        {
            "rope_theta": 1000.0,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
    ),
    "llama-yarn": ("Llama", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral-window": ("Mistral", {"sliding_window": 5}),
    "mistral-window-1": ("Mistral", {"sliding_window": 1}),
    "qwen2": ("Qwen2", {}),
    "qwen2-tied": ("Qwen2", {"tie_word_embeddings": True}),
}
if hasattr(transformers.Qwen2Config(), "layer_types"):  # older versions never apply Qwen2's window here
    window = {"use_sliding_window": True, "sliding_window": 6}
    CASES["qwen2-window"] = ("Qwen2", {**window, "max_window_layers": 0})
    CASES["qwen2-upper-window"] = ("Qwen2", {**window, "max_window_layers": 1})
PROMPTS = {"a": random_ids(23, 1), "b": random_ids(9, 2), "c": random_ids(1, 3), "d": random_ids(17, 4)}


@cache
def models(case: str):
    family, fields = CASES[case]
    hf = build_hf(family, **fields)
    return hf, build_ours(hf)


@cache
def expected(case: str, name: str) -> torch.Tensor:
    return hf_logits(models(case)[0], PROMPTS[name])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("page_size", [1, 16])
def test_full_prefill(case, page_size):
    driver = Driver(models(case)[1], page_size)
    assert_logits_close(driver.run("a", PROMPTS["a"], chunk=64), expected(case, "a"))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("chunk", "page_size"), [(1, 1), (3, 16), (7, 1), (7, 16)])
def test_chunked_prefill(case, chunk, page_size):
    driver = Driver(models(case)[1], page_size)
    assert_logits_close(driver.run("a", PROMPTS["a"], chunk), expected(case, "a"))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("page_size", [1, 16])
def test_mixed_batch(case, page_size):
    """Rows in prefill, in a chunk and in decode share steps; each is as if alone."""
    driver = Driver(models(case)[1], page_size)
    steps = [{"a": 20, "b": 3}, {"b": 1, "c": 1, "a": 1}, {"d": 10, "b": 4, "a": 1}, {"a": 1, "d": 7, "b": 1}]
    got: dict[str, list[torch.Tensor]] = {name: [] for name in PROMPTS}
    done = dict.fromkeys(PROMPTS, 0)
    for step in steps:
        rows = {name: PROMPTS[name][done[name] : done[name] + count] for name, count in step.items()}
        for name, logits in driver.step(rows).items():
            done[name] += len(rows[name])
            got[name].append(logits)
    assert done == {name: len(ids) for name, ids in PROMPTS.items()}
    for name, parts in got.items():
        assert_logits_close(torch.cat(parts), expected(case, name))


@pytest.mark.parametrize("case", CASES)
def test_greedy_tokens(case):
    hf, ours = models(case)
    assert Driver(ours, 16).greedy("a", PROMPTS["b"], 20) == hf_greedy(hf, PROMPTS["b"], 20)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("wanted", [["a", "c"], ["b"], []])
def test_the_last_layer_may_leave_tokens_out(case, wanted):
    """The states that are asked for, and every token's keys and values, are those of the whole pass."""
    _, ours = models(case)
    full, partial = Driver(ours, page_size=4), Driver(ours, page_size=4)
    expected = full.step(PROMPTS)
    found = partial.step(PROMPTS, wanted=wanted)
    assert list(found) == wanted
    for name, logits in found.items():
        torch.testing.assert_close(logits, expected[name][-1:], rtol=1e-5, atol=1e-5)
    for layer, other in zip(full.kv.layers, partial.kv.layers, strict=True):
        torch.testing.assert_close(layer.planes, other.planes, rtol=0, atol=0)
