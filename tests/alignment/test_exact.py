"""Trainer and engine agree on log-probabilities to the last bit, on a CPU, before and after training."""

from __future__ import annotations

import pytest
import torch

import rootlet

from ..models.hf import build_hf, one_thread, random_ids  # noqa: F401
from . import rollouts as r

FAMILIES = {
    "llama": ("Llama", {}),
    "llama, odd sizes": (
        "Llama",
        {"hidden_size": 72, "num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 100},
    ),
    "llama, biases and scaled rotation": (
        "Llama",
        {
            "attention_bias": True,
            "mlp_bias": True,
            "rope_scaling": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "mistral with a window": ("Mistral", {"sliding_window": 24}),
    "qwen2": ("Qwen2", {}),
    "qwen2, tied": ("Qwen2", {"tie_word_embeddings": True}),
}
ENGINES = {
    "preemption, chunks of 32": {"max_total_tokens": 352, "chunked_prefill_size": 32, "page_size": 16},
    "pages of 1, chunks of 7": {"max_total_tokens": 4096, "chunked_prefill_size": 7, "page_size": 1},
}


def start(folder, options: str, dtype: str = "float32") -> rootlet.Engine:
    return rootlet.Engine(
        str(folder),
        skip_tokenizer_init=True,
        device="cpu",
        deterministic=True,
        dtype=dtype,
        **ENGINES[options],
    )


@pytest.mark.parametrize("options", ENGINES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_sampled_token_before_and_after_training(family, options, tmp_path):
    name, fields = FAMILIES[family]
    module = build_hf(name, max_position_embeddings=256, **fields).train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    first = None
    with rootlet.align(module):
        for step in range(2):
            module.save_pretrained(tmp_path / str(step))
            with start(tmp_path / str(step), options) as engine:
                for temperature in (1.0, 0.7):
                    made = r.rollouts(engine, temperature)
                    values = rootlet.token_logprobs(module, r.sequences(made), temperature)
                    r.assert_equal(made, values)
                if "preemption" in options:
                    assert engine.stats().num_preemptions > 0
                assert sum(rollout.cached for rollout in made) > 0
            assert first is None or not torch.equal(values[0], first)  # equality would show nothing
            first = values[0].detach()
            for _ in range(3):
                r.train(module, optimizer, made)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_bf16_and_fp32_masters_with_a_bf16_engine(family, tmp_path):
    """Weights are rounded once, by save_pretrained's reader or by the trainer."""
    name, fields = FAMILIES[family]
    masters = build_hf(name, max_position_embeddings=256, **fields)
    masters.save_pretrained(tmp_path)
    with start(tmp_path, "pages of 1, chunks of 7", "bfloat16") as engine:
        made = r.rollouts(engine, 0.7)
    with rootlet.align(masters, dtype="bfloat16"):
        values = rootlet.token_logprobs(masters, r.sequences(made), 0.7)
        r.assert_equal(made, values)
        sum(value.sum() for value in values).backward()
    assert {parameter.grad.dtype for parameter in masters.parameters()} == {torch.float32}
    with rootlet.align(masters.bfloat16()):
        r.assert_equal(made, rootlet.token_logprobs(masters, r.sequences(made), 0.7))


@pytest.mark.parametrize("family", ["llama", "qwen2, tied"])
def test_an_engine_that_follows_the_trainer(family, tmp_path):
    """One engine, given the module's weights after every optimizer step, its cache and all."""
    name, fields = FAMILIES[family]
    module = build_hf(name, max_position_embeddings=256, **fields).train()
    module.save_pretrained(tmp_path)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    with start(tmp_path, "preemption, chunks of 32") as engine, rootlet.align(module):
        for _ in range(4):
            made = r.rollouts(engine, 0.9)
            r.assert_equal(made, rootlet.token_logprobs(module, r.sequences(made), 0.9))
            r.train(module, optimizer, made)
            engine.update_weights(module)
        assert engine.stats().num_preemptions > 0


def test_tempered_log_probabilities_of_filtered_tokens(tmp_path):
    """What top-p and top-k drop does not show in them."""
    module = build_hf("Llama", max_position_embeddings=256)
    module.save_pretrained(tmp_path)
    with start(tmp_path, "pages of 1, chunks of 7") as engine, rootlet.align(module):
        made = r.rollouts(engine, 0.7, top_p=0.8, top_k=20, logprobs_of="tempered")
        r.assert_equal(made, rootlet.token_logprobs(module, r.sequences(made), 0.7))


def test_greedy_tokens_have_temperature_one(tmp_path):
    module = build_hf("Llama")
    module.save_pretrained(tmp_path)
    with start(tmp_path, "pages of 1, chunks of 7") as engine:
        made = r.rollouts(engine, 0.0, r.PROMPTS[:3])
    with rootlet.align(module):
        r.assert_equal(made, rootlet.token_logprobs(module, r.sequences(made)))


def test_threads_and_company_change_no_bit():
    module = build_hf(
        "Llama", hidden_size=128, intermediate_size=512, vocab_size=2048, max_position_embeddings=256
    )
    ids = [random_ids(n, seed=n, vocab_size=2048) for n in (3, 200, 77, 30)]
    with rootlet.align(module) as alignment, torch.no_grad():
        alone = [rootlet.token_logprobs(module, [row])[0] for row in ids]
        torch.set_num_threads(2)
        alignment._team = None
        together = rootlet.token_logprobs(module, ids)
    assert all(map(torch.equal, alone, together))


def test_without_alignment_there_is_a_mismatch(tmp_path):
    """What alignment is for: transformers' own kernels round otherwise."""
    module = build_hf("Llama", max_position_embeddings=256)
    module.save_pretrained(tmp_path)
    with start(tmp_path, "pages of 1, chunks of 7") as engine:
        made = r.rollouts(engine, 1.0)
    worst = 0.0
    for prompt, tokens, expected, _ in made:
        with torch.no_grad():
            logits = module(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
        values = torch.log_softmax(logits, 1).gather(1, torch.tensor(tokens)[:, None])[:, 0]
        worst = max(worst, (values - expected).abs().max().item())
    assert 0 < worst < 1e-4
