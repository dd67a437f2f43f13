"""Constrained outputs on the GPU: graphs, overlap, masks sent from pinned memory, jump-forward."""

from __future__ import annotations

import pytest

import rootlet

from ..engine.constrained import FORM, check_corpus, check_rows_apart


@pytest.fixture(scope="module", params=["xgrammar", "llguidance"])
def real(request, smollm2_gguf):
    with rootlet.Engine(
        str(smollm2_gguf), device="cuda", deterministic=True, grammar_backend=request.param
    ) as engine:
        info = engine.get_server_info()
        assert info["disable_overlap_schedule"] is False
        assert info["disable_cuda_graph"] is False
        yield engine


def test_every_complete_output_of_a_real_model_is_valid(real):
    check_corpus(real)


def test_masks_never_leak_between_rows(real):
    check_rows_apart(real)


@pytest.mark.parametrize("batch", [1, 64])
def test_jump_forward_saves_steps_and_changes_no_token(real, smollm2_gguf, batch):
    """The engine without it draws the same tokens with the same log-probabilities."""
    prompts = [f"Fill in the form as JSON for customer {i}: " for i in range(batch)]
    params = [
        {"temperature": i % 2, "seed": i, "max_new_tokens": 120, "json_schema": FORM} for i in range(batch)
    ]
    answers, steps = [], []
    with rootlet.Engine(
        str(smollm2_gguf), device="cuda", deterministic=True, disable_jump_forward=True
    ) as plain:
        for engine in (real, plain):
            before = engine.stats().num_steps
            outputs = engine.generate(prompts, params, return_logprob=True)
            steps.append(engine.stats().num_steps - before)
            answers.append([(output.token_ids, output.output_token_logprobs) for output in outputs])
    assert answers[0] == answers[1]
    if batch == 1:
        assert steps[0] * 1.5 <= steps[1]
