"""Recorded decode steps on the CPU, where a replay runs again: they compute what the CPU's own steps do."""

from __future__ import annotations

import re

import pytest
import torch

pytest.importorskip("supported_triton")

from replayed_graphs import use_gpu_steps
from tiny_text import write_tiny_text_model

import rootlet
from rootlet.engine.build import proposers, recording
from rootlet.engine.steps.graphs import steps
from rootlet.kernels.gpu import prefix_groups

from ..models.hf import build_hf
from .test_toy_proposer import FromList

PREFIX = [11 * i % 97 for i in range(130)]
PROMPTS = [[5, 6, 7], [9] * 20, [3], *([*PREFIX, i, 2 * i] for i in range(3))]
PARAMS = [
    {"temperature": 0, "max_new_tokens": 11},
    {"temperature": 1, "seed": 3, "max_new_tokens": 8},
    {"temperature": 0, "max_new_tokens": 14},
    {"temperature": 0.8, "seed": 5, "top_p": 0.8, "frequency_penalty": 0.5, "max_new_tokens": 9},
    {"temperature": 0, "max_new_tokens": 6},
    {"temperature": 0, "max_new_tokens": 12},
]
STATES = [i == 1 for i in range(len(PROMPTS))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    build_hf(
        "Llama", max_position_embeddings=256, num_hidden_layers=1, hidden_size=32, num_attention_heads=2,
        num_key_value_heads=1,
    ).save_pretrained(path)  # fmt: skip
    return str(path)


def run(folder, params=PARAMS, *, states=False, logprobs=False, **options):
    params = [one | {"ignore_eos": True} for one in params]
    options |= {"max_total_tokens": 1024, "page_size": 16, "disable_overlap_schedule": False}
    with rootlet.Engine(folder, device="cpu", dtype="float32", skip_tokenizer_init=True, **options) as engine:
        return engine.generate(
            input_ids=PROMPTS,
            sampling_params=params,
            return_hidden_states=STATES if states else False,
            return_logprob=logprobs,
            logprob_start_len=[0, 0, 0, -1, -1, -1] if logprobs else None,
        )


def check_same(outputs, expected):
    assert [output.token_ids for output in outputs] == [output.token_ids for output in expected]
    for output, want in zip(outputs, expected):
        if want.hidden_states is not None:
            for got, state in zip(output.hidden_states, want.hidden_states, strict=True):
                torch.testing.assert_close(got, state, atol=1e-4, rtol=1e-4)
        for name in ("input_token_logprobs", "output_token_logprobs"):
            for got, token in zip(getattr(output, name) or (), getattr(want, name) or (), strict=True):
                assert got[1:] == token[1:]
                assert got[0] == (token[0] and pytest.approx(token[0], abs=1e-4))


def test_steps_of_all_kinds(folder, monkeypatch):
    """Greedy and sampled, with states and scores, while the batch shrinks and rows share a prefix."""
    expected = run(folder, states=True, logprobs=True)
    monkeypatch.setattr(prefix_groups, "LAUNCH_TOKENS", 0)
    graphs = use_gpu_steps(monkeypatch)
    outputs = run(folder, states=True, logprobs=True)
    [made] = graphs
    check_same(outputs, expected)
    assert {tiles > 0 for _, _, tiles in made.decodes} == {False, True}
    assert len({size for size, _, _ in made.decodes}) >= 3


def test_greedy_steps_end_in_the_recording(folder, monkeypatch):
    greedy = [{"temperature": 0, "max_new_tokens": 6}] * len(PROMPTS)
    expected = run(folder, greedy)
    graphs = use_gpu_steps(monkeypatch)
    outputs = run(folder, greedy)
    [made] = graphs
    check_same(outputs, expected)
    assert {greedy for _, greedy, _ in made.decodes} == {True}


def test_chunks_of_prompts_beside_decodes(folder, monkeypatch):
    """Rows of one token and of several in steps padded to 64 tokens, run once, then replayed."""
    expected = run(folder)
    graphs = use_gpu_steps(monkeypatch)
    outputs = run(folder, chunked_prefill_size=20)
    [made] = graphs
    check_same(outputs, expected)
    assert all(recorded for _, _, recorded in made.replays)
    assert {(size, decodes) for size, decodes, *_ in made.mixed} == {(64, 0), (64, 4)}
    mixed = [count for count, _, _ in made.replays if count >= 20]
    assert len(mixed) > 6  # each is run once, recorded once, then replayed
    assert len(set(mixed)) > 2  # with decodes and without


def test_steps_that_no_recording_has_room_for(folder, monkeypatch):
    """More tokens, or more prompts, than there is room for: launched kernel by kernel, just the same."""
    prompts = [[i + 1, 7] for i in range(20)]
    monkeypatch.setattr(recording, "_ALWAYS", 64)
    monkeypatch.setattr(recording, "_BUSY", 0)

    def outputs():
        with rootlet.Engine(
            folder, device="cpu", dtype="float32", skip_tokenizer_init=True, max_total_tokens=2048
        ) as engine:
            params = {"temperature": 0, "max_new_tokens": 2, "ignore_eos": True}
            return [
                output.token_ids
                for ids in ([PREFIX], prompts, [PREFIX[:60]])
                for output in engine.generate(input_ids=ids, sampling_params=params)
            ]

    expected = outputs()
    graphs = use_gpu_steps(monkeypatch)
    assert outputs() == expected
    [made] = graphs
    assert [recorded for count, greedy, recorded in made.replays if not greedy] == [False, False, True]


def test_more_decodes_than_the_option_allows_are_not_recorded(folder, monkeypatch):
    expected = run(folder)
    graphs = use_gpu_steps(monkeypatch)
    outputs = run(folder, cuda_graph_max_bs=2)
    [made] = graphs
    check_same(outputs, expected)
    decodes = {(count, recorded) for count, _, recorded in made.replays if count <= len(PROMPTS)}
    assert {recorded for count, recorded in decodes if count > 2} == {False}
    assert {recorded for count, recorded in decodes if count <= 2} == {True}


def test_steps_of_streams_are_recorded_before_they_come(folder, monkeypatch):
    """Between requests, once somebody has streamed: whatever comes then is replayed, and the same."""
    params = {"temperature": 0, "max_new_tokens": 6, "ignore_eos": True}
    expected = run(folder, [params] * len(PROMPTS))
    monkeypatch.setattr(steps, "_AHEAD", ((64, 0), (64, 4)))
    graphs = use_gpu_steps(monkeypatch)
    options = {"page_size": 16, "max_running_requests": 4, "chunked_prefill_size": 20, "dtype": "float32"}
    options |= {"max_total_tokens": 1024, "device": "cpu", "skip_tokenizer_init": True}
    with rootlet.Engine(folder, **options) as engine:
        [made] = graphs

        def known():
            return {*made._mixed._steps.values(), *made._decodes._steps.values()}

        engine.generate(input_ids=[1, 2], sampling_params=params)
        assert len(known()) == 2  # a prompt and a decode; nobody has streamed
        *_, output = engine.generate(input_ids=PROMPTS[0], sampling_params=params, stream=True)
        assert made.is_ready.wait(60)
        recorded = known()
        assert all(step.is_recorded for step in recorded)
        outputs = engine.generate(input_ids=PROMPTS, sampling_params=params)
        assert known() == recorded
    check_same([output, *outputs], [expected[0], *expected])


def test_drafts_are_rows_of_their_own(folder, monkeypatch):
    expected = run(folder, states=True, logprobs=True)
    seen = {tuple(ids): list(output.token_ids) for ids, output in zip(PROMPTS, expected)}
    seen[tuple(PROMPTS[2])][7] += 1  # one is wrong about one token
    monkeypatch.setattr(proposers, "PROPOSERS", (lambda config, constraints: FromList(seen),))
    graphs = use_gpu_steps(monkeypatch)
    outputs = run(folder, states=True, logprobs=True)
    [made] = graphs
    check_same(outputs, expected)
    assert max(count for count, _, _ in made.replays) > len(PROMPTS)


def test_masks_are_filled_behind_a_replay(tmp_path, monkeypatch):
    """Drawing waits for the matchers, beside rows that are free and forced texts that are drafted."""
    write_tiny_text_model(tmp_path)
    params = [
        {"regex": "[ab]{4,8}", "temperature": 1, "seed": 1},
        {"temperature": 0, "ignore_eos": True},
        {"regex": "[ab]: the quick brown fox", "temperature": 0},
    ]

    def outputs():
        options = {"max_total_tokens": 1024, "disable_overlap_schedule": False, "dtype": "float32"}
        with rootlet.Engine(str(tmp_path), load_format="dummy", device="cpu", **options) as engine:
            return engine.generate(["a tree"] * 3, [one | {"max_new_tokens": 24} for one in params])

    expected = outputs()
    graphs = use_gpu_steps(monkeypatch)
    assert [output.token_ids for output in outputs()] == [output.token_ids for output in expected]
    assert re.fullmatch("[ab]{4,8}", expected[0].text)
    [made] = graphs
    assert {greedy for _, greedy, _ in made.decodes} >= {False}
