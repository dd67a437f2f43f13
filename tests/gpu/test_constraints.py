"""Constrained outputs on the GPU: graphs, overlap, masks sent from pinned memory, jump-forward."""

from __future__ import annotations

import pytest

import rootlet

from ..engine.constrained import FORM, check_corpus, check_rows_apart


@pytest.fixture(scope="module")
def build(smollm2_gguf):
    def build(**options) -> rootlet.Engine:
        return rootlet.Engine(str(smollm2_gguf), device="cuda", max_total_tokens=65_536, **options)

    return build


@pytest.fixture(scope="module", params=["xgrammar", "llguidance"])
def real(request, build):
    with build(deterministic=True, grammar_backend=request.param) as engine:
        info = engine.get_server_info()
        assert info["disable_overlap_schedule"] is False
        assert info["disable_cuda_graph"] is False
        yield engine


def test_every_complete_output_of_a_real_model_is_valid(real):
    check_corpus(real)


def test_masks_never_leak_between_rows(real):
    check_rows_apart(real)


def answers(engine, prompts, **params) -> tuple[list, int]:
    """What is answered, and the number of steps it took."""
    before = engine.stats().num_steps
    settings = [
        {"temperature": i % 2, "seed": i, "max_new_tokens": 120, "json_schema": FORM, **params}
        for i in range(len(prompts))
    ]
    outputs = engine.generate(prompts, settings, return_logprob=True)
    return outputs, engine.stats().num_steps - before


@pytest.mark.parametrize("batch", [1, 16])
def test_jump_forward_saves_steps_and_changes_no_bit(real, build, batch):
    prompts = [f"Fill in the form as JSON for customer {i}: " for i in range(batch)]
    backend = real.config.grammar_backend
    with build(deterministic=True, grammar_backend=backend, disable_jump_forward=True) as plain:
        (got, steps), (expected, plain_steps) = answers(real, prompts), answers(plain, prompts)
    for output, other in zip(got, expected):
        assert output.token_ids == other.token_ids
        assert output.output_token_logprobs == other.output_token_logprobs
    assert steps * (1.5 if batch == 1 else 1.2) < plain_steps


def test_drafts_share_long_prefixes(build):
    """Drafts are rows of one request; they and its neighbours read the same pages together."""
    story = "It was a long way to the sea, and nobody knew the road. " * 150
    prompts = [f"{story}Fill in the form as JSON for customer {i}: " for i in range(6)]
    outputs = []
    for options in ({}, {"disable_jump_forward": True, "disable_shared_prefix_attention": True}):
        with build(dtype="float32", **options) as engine:
            outputs += [answers(engine, prompts[:1])[0] + answers(engine, prompts, temperature=0)[0]]
    for output, other in zip(*outputs):
        assert output.token_ids == other.token_ids
