"""Sampled tokens depend on prompt, parameters and seed; not on batch mates or graphs."""

from __future__ import annotations

import random

import pytest

from .tiny import build, random_prompt, saved

PARAMS = [
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 20},
    {"temperature": 1.3, "top_p": 0.8},
    {"temperature": 1.0, "min_p": 0.1},
    {"temperature": 0.9, "top_k": 30, "top_p": 0.9, "min_p": 0.02},
    {"temperature": 1.0, "repetition_penalty": 1.3, "frequency_penalty": 0.4, "presence_penalty": 0.3},
    {"temperature": 1.0, "logit_bias": {3: 5.0, 40: -100.0}},
    {"temperature": 1.0, "stop_token_ids": [5], "ignore_eos": False, "min_new_tokens": 12},
    {"temperature": 0},
]
SETTINGS = [
    {"ignore_eos": True, "max_new_tokens": 16 + i, "seed": 1000 + i} | PARAMS[i % len(PARAMS)]
    for i in range(3 * len(PARAMS))
]
PROMPTS = [random_prompt(3 + 5 * i, i) for i in range(len(SETTINGS))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved("llama", tmp_path_factory.mktemp("sampling"))


@pytest.fixture(scope="module")
def alone(folder):
    """Tokens of each request when nothing else runs."""
    with build(folder) as engine:
        return [
            list(engine.generate(input_ids=prompt, sampling_params=params).token_ids)
            for prompt, params in zip(PROMPTS, SETTINGS)
        ]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"disable_cuda_graph": True},
        {"disable_overlap_schedule": True},
        {"cuda_graph_max_bs": 4},
        {"page_size": 1, "chunked_prefill_size": 9},
        {"attention_backend": "torch"},
        {"max_total_tokens": 320},
    ],
    ids=lambda options: ",".join(f"{k}={v}" for k, v in options.items()) or "defaults",
)
def test_seeds_are_reproducible_in_any_batch(folder, alone, options):
    order = list(range(len(PROMPTS)))
    with build(folder, **options) as engine:
        for seed in range(2):
            random.Random(seed).shuffle(order)
            outputs = engine.generate(
                input_ids=[PROMPTS[i] for i in order], sampling_params=[SETTINGS[i] for i in order]
            )
            got = {i: list(output.token_ids) for i, output in zip(order, outputs)}
            assert [got[i] for i in range(len(PROMPTS))] == alone


def test_the_seed_matters(folder, alone):
    with build(folder) as engine:
        params = [settings | {"seed": settings["seed"] + 1} for settings in SETTINGS]
        other = [list(o.token_ids) for o in engine.generate(input_ids=PROMPTS, sampling_params=params)]
    same = [a == b for a, b in zip(alone, other)]
    greedy = [settings["temperature"] == 0 for settings in SETTINGS]
    assert [s for s, g in zip(same, greedy) if g] == [True] * sum(greedy)
    assert sum(s for s, g in zip(same, greedy) if not g) <= 1


def test_parameters_are_obeyed(alone):
    for settings, tokens in zip(SETTINGS, alone):
        if "logit_bias" in settings:
            assert 40 not in tokens
            assert 3 in tokens
        if "stop_token_ids" in settings:
            assert 5 not in tokens[:12]
        else:
            assert len(tokens) == settings["max_new_tokens"]


def test_an_engine_seed_repeats_unseeded_requests(folder):
    runs = []
    for _ in range(2):
        with build(folder, random_seed=11) as engine:
            params = {"temperature": 1.0, "max_new_tokens": 20, "ignore_eos": True, "n": 4}
            outputs = engine.generate(input_ids=PROMPTS[3], sampling_params=params)
            runs.append([output.token_ids for output in outputs])
    assert runs[0] == runs[1]
    assert len(set(runs[0])) == 4


def test_logprobs_do_not_depend_on_batch_mates(folder):
    """Of the sampled tokens, beside rows that want none; 1e-4 is ten times what fp32 sums differ by."""
    with build(folder) as engine:
        settings = {"return_logprob": True, "top_logprobs_num": 3}
        one = engine.generate(input_ids=PROMPTS[5], sampling_params=SETTINGS[5], **settings)
        count = len(PROMPTS)
        odd = [i % 2 == 1 for i in range(count)]
        wanted = {"return_logprob": odd, "top_logprobs_num": [3 if o else 0 for o in odd]}
        many = engine.generate(input_ids=PROMPTS, sampling_params=SETTINGS, **wanted)[5]
    assert many.token_ids == one.token_ids
    got, want = many.output_token_logprobs, one.output_token_logprobs
    assert [t[0] for t in got] == pytest.approx([t[0] for t in want], abs=1e-4)
    tops = [[logprob for logprob, _, _ in top] for top in many.output_top_logprobs]
    for top, other in zip(tops, one.output_top_logprobs):
        assert top == pytest.approx([logprob for logprob, _, _ in other], abs=1e-4)
