"""Hidden states on the GPU: those of transformers, whether graphs, chunks or a second admission made them."""

from __future__ import annotations

import pytest
import torch

from .tiny import build, random_prompt, reference, saved

PROMPTS = [random_prompt(length, length) for length in (1, 2, 9, 63, 130)]
GREEDY = {"temperature": 0, "max_new_tokens": 12, "ignore_eos": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved("llama", tmp_path_factory.mktemp("hidden"))


@torch.inference_mode()
def check(output, prompt):
    """``output`` has one state for every token but the last, each that of transformers' model."""
    states = output.hidden_states
    assert len(states) == output.completion_tokens
    assert all(state.device.type == "cpu" and state.dtype == torch.float32 for state in states)
    assert not any(state.is_inference() or state.is_pinned() for state in states)
    ids = torch.tensor([[*prompt, *output.token_ids]], device="cuda")
    expected = reference("llama").model(ids, use_cache=False).last_hidden_state[0, :-1].cpu()
    assert expected.abs().max() > 1
    got = torch.cat([states[0], *(state[None] for state in states[1:])])
    torch.testing.assert_close(got, expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"disable_cuda_graph": True, "disable_overlap_schedule": True},
        {"chunked_prefill_size": 16, "cuda_graph_max_bs": 2, "page_size": 4},
    ],
    ids=lambda options: ",".join(f"{k}={v}" for k, v in options.items()) or "defaults",
)
def test_states_are_those_of_transformers(folder, options):
    """Beside a request that wants none, without and with the prompts in the tree, of drawn tokens too."""
    wanted = [True, False, True, True, True]
    drawn = {"temperature": 1.0, "seed": 5, "max_new_tokens": 12, "ignore_eos": True, "n": 3}
    with build(folder, **options) as engine:
        plain = engine.generate(input_ids=PROMPTS, sampling_params=GREEDY)
        for _ in range(2):
            outputs = engine.generate(input_ids=PROMPTS, sampling_params=GREEDY, return_hidden_states=wanted)
            assert [output.token_ids for output in outputs] == [output.token_ids for output in plain]
            for prompt, output, wants in zip(PROMPTS, outputs, wanted):
                if wants:
                    check(output, prompt)
                else:
                    assert output.hidden_states is None
        samples = engine.generate(input_ids=PROMPTS[3], sampling_params=drawn, return_hidden_states=True)
        # the recordings that give no states are still what they were
        again = engine.generate(input_ids=PROMPTS, sampling_params=GREEDY)
        assert [output.token_ids for output in again] == [output.token_ids for output in plain]
    assert len({sample.token_ids for sample in samples}) == 3
    for sample in samples:
        check(sample, PROMPTS[3])


def test_preemption_collects_no_state_twice(folder):
    prompts = [random_prompt(12, 20 + i) for i in range(5)]
    params = GREEDY | {"max_new_tokens": 30}
    with build(folder, max_total_tokens=64, page_size=4, chunked_prefill_size=8) as engine:
        outputs = engine.generate(input_ids=prompts, sampling_params=params, return_hidden_states=True)
        assert engine.stats().num_preemptions > 0
    for prompt, output in zip(prompts, outputs):
        check(output, prompt)
