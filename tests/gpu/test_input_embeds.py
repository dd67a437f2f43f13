"""Prompts as vectors on the GPU: those of tokens give what the tokens give, others what transformers does."""

from __future__ import annotations

import pytest
import torch

from .tiny import build, random_prompt, reference, saved

PROMPTS = [random_prompt(length, 10 + length) for length in (1, 2, 9, 30, 47)]
PARAMS = {"temperature": 0, "max_new_tokens": 12, "ignore_eos": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved("llama", tmp_path_factory.mktemp("embeds"))


@pytest.fixture(scope="module")
def table():
    """The embedding of every token, on the GPU."""
    return reference("llama").get_input_embeddings().weight.detach()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"chunked_prefill_size": 5, "page_size": 4, "max_total_tokens": 64},
        {"disable_cuda_graph": True, "disable_overlap_schedule": True, "disable_radix_cache": True},
    ],
    ids=lambda options: ",".join(f"{k}={v}" for k, v in options.items()) or "defaults",
)
def test_the_embeddings_of_tokens_give_what_the_tokens_give(folder, table, options):
    """On the device or not, in a batch of their own, again, and beside tokens."""
    embeds = [table[ids] if i % 2 else table[ids].cpu().numpy() for i, ids in enumerate(PROMPTS)]
    with build(folder, **options) as engine:
        want = [output.token_ids for output in engine.generate(input_ids=PROMPTS, sampling_params=PARAMS)]
        first = engine.generate(input_embeds=embeds, sampling_params=PARAMS)
        again = engine.generate(input_embeds=embeds, sampling_params=PARAMS)
        mixed = [
            engine.submit(input_ids=PROMPTS[i], sampling_params=PARAMS)
            if i % 2
            else engine.submit(input_embeds=embeds[i], sampling_params=PARAMS)
            for i in range(len(PROMPTS))
        ]
        mixed = [handle.result(60) for handle in mixed]
    for outputs in (first, again, mixed):
        assert [output.token_ids for output in outputs] == want
    if not options:
        assert [output.cached_tokens for output in first] == [0] * 5
        assert [output.cached_tokens for output in again] == [len(ids) - 1 for ids in PROMPTS]


def test_vectors_of_no_token_give_what_transformers_gives(folder, table):
    generator = torch.Generator().manual_seed(8)
    embeds = [torch.randn(n, table.shape[1], generator=generator).cuda() * 0.2 for n in (1, 20, 70)]
    with build(folder, chunked_prefill_size=16) as engine:
        outputs = engine.generate(input_embeds=embeds, sampling_params=PARAMS, return_hidden_states=True)
    assert len({output.token_ids for output in outputs}) == 3
    for vectors, output in zip(embeds, outputs):
        ids = torch.tensor(output.token_ids, device="cuda")
        with torch.inference_mode():
            inputs = torch.cat([vectors, table[ids[:-1]]])[None]
            hidden = reference("llama").model(inputs_embeds=inputs, use_cache=False).last_hidden_state[0]
            logits = reference("llama").lm_head(hidden[len(vectors) - 1 :])
        assert (logits.amax(-1) - logits.gather(1, ids[:, None])[:, 0]).max() < 1e-3
        states = torch.cat([output.hidden_states[0], *(state[None] for state in output.hidden_states[1:])])
        torch.testing.assert_close(states, hidden.cpu(), atol=2e-4, rtol=0)
