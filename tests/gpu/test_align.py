"""Trainer and engine agree on log-probabilities to the last bit, on a GPU in bf16, over 20 steps."""

from __future__ import annotations

import itertools

import pytest
import torch

import rootlet

from ..alignment import rollouts as r
from ..models.hf import build_hf, random_ids

CONTEXT = 1024
SHAPE = {
    "num_hidden_layers": 4,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 4096,
    "max_position_embeddings": CONTEXT,
}
STEPS = 20
ENGINES = {
    "defaults": {"max_total_tokens": 16_384},
    "preemption": {"max_total_tokens": 448, "page_size": 1, "chunked_prefill_size": 48},
    "eager, pages of 16": {"max_total_tokens": 16_384, "page_size": 16, "disable_cuda_graph": True},
    "no cache": {"max_total_tokens": 16_384, "disable_radix_cache": True},
}
PROMPTS = [random_ids(n, seed=n, vocab_size=4096) for n in (1, 7, 64, 130, 200)]
PROMPTS += [PROMPTS[3] + PROMPTS[1], *PROMPTS[2:]]


def start(folder, options: str, dtype: str = "bfloat16") -> rootlet.Engine:
    return rootlet.Engine(
        str(folder),
        skip_tokenizer_init=True,
        device="cuda",
        dtype=dtype,
        deterministic=True,
        context_length=CONTEXT,
        **ENGINES[options],
    )


def build(family: str, dtype: torch.dtype, **fields) -> torch.nn.Module:
    """Weights of usual size, so that 4 layers of width 512 stay in a usual range."""
    module = build_hf(family, **(SHAPE | fields))
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "norm" not in name:
                parameter.mul_(0.2)
    return module.to("cuda", dtype).train()


@pytest.mark.parametrize("family", ["Llama", "Qwen2"])
def test_every_sampled_token_over_20_steps(family, tmp_path):
    """Weights in bf16 and AdamW; a new engine after each step, of another kind each time, graphs included."""
    module = build(family, torch.bfloat16)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    seen, preemptions = [], 0
    with rootlet.align(module):
        for step in range(STEPS):
            options = list(ENGINES)[step % len(ENGINES)]
            module.save_pretrained(tmp_path)
            temperature = (1.0, 0.7)[step // len(ENGINES) % 2]
            with start(tmp_path, options) as engine:
                for _ in range(2):  # the second time from the cache, and from recorded steps
                    made = r.rollouts(engine, temperature, PROMPTS)
                    values = rootlet.token_logprobs(module, r.sequences(made), temperature)
                    r.assert_equal(made, values)
                preemptions += engine.stats().num_preemptions
            seen.append(made[0].logprobs)
            r.train(module, optimizer, made)
    assert preemptions > 0
    assert not any(torch.equal(a, b) for a, b in itertools.pairwise(seen))  # equality would show nothing


@pytest.mark.parametrize("family", ["Llama", "Qwen2"])
def test_an_engine_that_follows_the_trainer(family, tmp_path):
    """One engine over 20 steps, given the module's weights after each, with its recorded steps and cache."""
    module = build(family, torch.bfloat16)
    module.save_pretrained(tmp_path)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    with start(tmp_path, "defaults") as engine, rootlet.align(module):
        for step in range(STEPS):
            temperature = (1.0, 0.7)[step % 2]
            made = r.rollouts(engine, temperature, PROMPTS, top_p=0.9, logprobs_of="tempered")
            r.assert_equal(made, rootlet.token_logprobs(module, r.sequences(made), temperature))
            r.train(module, optimizer, made)
            engine.update_weights(module)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_fp32_masters_with_an_engine_of(dtype, tmp_path):
    module = build("Llama", torch.float32, tie_word_embeddings=True)
    module.save_pretrained(tmp_path)
    with rootlet.align(module, dtype=dtype), start(tmp_path, "defaults", dtype) as engine:
        made = r.rollouts(engine, 0.7, PROMPTS)
        values = rootlet.token_logprobs(module, r.sequences(made), 0.7)
        r.assert_equal(made, values)
        sum(value.sum() for value in values).backward()
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters())


@pytest.mark.parametrize("family", ["Llama", "Qwen2"])
def test_gradients_are_those_of_transformers(family):
    """In fp32, with recomputed layers too."""
    module = build(family, torch.float32)
    rows = [random_ids(n, seed=n, vocab_size=4096) for n in (40, 130, 200)]
    for row in rows:
        ids = torch.tensor([row], device="cuda")
        logits = module(ids, use_cache=False).logits[0, :-1]
        torch.log_softmax(logits, 1).gather(1, ids[0, 1:, None]).sum().backward()
    expected = {name: parameter.grad.clone() for name, parameter in module.named_parameters()}
    for recomputed in (False, True):
        if recomputed:
            getattr(module, "activation_checkpointing_enable", module.gradient_checkpointing_enable)()
        module.zero_grad()
        with rootlet.align(module):
            sum(value.sum() for value in rootlet.token_logprobs(module, rows)).backward()
        for name, parameter in module.named_parameters():
            limit = 2e-4 * expected[name].abs().max().item()
            torch.testing.assert_close(parameter.grad, expected[name], atol=limit, rtol=2e-3, msg=name)


def test_padding_changes_no_bit():
    module = build("Llama", torch.bfloat16)
    rows = [random_ids(n, seed=n, vocab_size=4096) for n in (3, 90, 301)]
    ids = torch.tensor([[0] * (301 - len(row)) + row for row in rows], device="cuda")
    mask = torch.tensor([[0] * (301 - len(row)) + [1] * len(row) for row in rows], device="cuda")
    with rootlet.align(module), torch.no_grad():
        together = rootlet.token_logprobs(module, ids, attention_mask=mask)
        logits = module(ids, attention_mask=mask).logits
        for row, values, row_logits in zip(rows, together, logits):
            [alone] = rootlet.token_logprobs(module, [row])
            assert torch.equal(values[-len(alone) :], alone)
            assert not values[: -len(alone)].any()
            assert torch.equal(row_logits[-len(row) :], module(torch.tensor([row], device="cuda")).logits[0])
