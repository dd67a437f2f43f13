"""Biases, bans and penalties against a token-by-token reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rootlet.sampling.batch import SamplingBatch
from rootlet.sampling.params import SamplingParams
from rootlet.sampling.penalties import add_biases, apply_penalties, ban_until_min
from rootlet.sampling.rows import SamplingRow
from rootlet.sampling.scratch import Scratch

VOCAB = 12


def reference(logits, params: SamplingParams, banned, prompt, output) -> np.ndarray:
    """One row after biases, bans, presence and frequency, repetition: one token at a time, in fp32."""
    out = logits.astype(np.float32).copy()
    f32 = np.float32
    for token in range(len(out)):
        out[token] += f32((params.logit_bias or {}).get(token, 0.0))
        if token in banned and len(output) < params.min_new_tokens:
            out[token] = -np.inf
        count = output.count(token)
        out[token] -= f32(params.frequency_penalty) * f32(count)
        out[token] -= f32(params.presence_penalty) * f32(count > 0)
        if token in prompt or token in output:
            penalty = f32(params.repetition_penalty)
            out[token] = out[token] / penalty if out[token] > 0 else out[token] * penalty
    return out


ids = st.integers(0, VOCAB - 1)
halves = st.integers(-4, 4).map(lambda x: x / 2)
requests = st.fixed_dictionaries(
    {
        "prompt": st.lists(ids, min_size=1, max_size=6),
        "output": st.lists(ids, max_size=6),
        "banned": st.lists(ids, max_size=3),
        "logits": st.lists(st.integers(-40, 40).map(lambda x: x / 7), min_size=VOCAB, max_size=VOCAB),
        "params": st.fixed_dictionaries(
            {},
            optional={
                "frequency_penalty": halves,
                "presence_penalty": st.floats(-2, 2),
                "repetition_penalty": st.floats(0.1, 2),
                "min_new_tokens": st.integers(0, 6),
                "logit_bias": st.dictionaries(ids, st.floats(-100, 100), max_size=3),
            },
        ),
    }
)


@settings(max_examples=150, deadline=None)
@given(st.lists(requests, min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_logits_equal_the_reference(cases, rng):
    """Any mixture of rows; the table holds other requests' leftovers behind each row's tokens."""
    slots = rng.sample(range(1, 20), len(cases))
    tokens = torch.tensor([[rng.randrange(VOCAB) for _ in range(16)] for _ in range(20)], dtype=torch.int32)
    rows, positions = [], []
    for case, slot in zip(cases, slots):
        history = case["prompt"] + case["output"]
        tokens[slot, : len(history)] = torch.tensor(history, dtype=torch.int32)
        positions.append(len(history))
        params = SamplingParams(**case["params"])
        rows.append(SamplingRow(params, 0, slot, len(case["prompt"]), tuple(case["banned"])))
    batch = SamplingBatch.build(rows, VOCAB, "cpu")
    logits = torch.tensor([case["logits"] for case in cases], dtype=torch.float32)
    expected = np.stack(
        [
            reference(np.array(case["logits"]), row.params, case["banned"], case["prompt"], case["output"])
            for case, row in zip(cases, rows)
        ]
    )
    at = torch.tensor(positions)
    if batch.biases is not None:
        add_biases(logits, batch.biases)
    if batch.bans is not None:
        ban_until_min(logits, batch.bans, at)
    if batch.penalties is not None:
        apply_penalties(logits, batch.penalties, at, tokens, Scratch(torch.device("cpu")))
    assert np.array_equal(logits.numpy(), expected)


def test_stages_nobody_needs_are_absent(row):
    batch = SamplingBatch.build([row(), row(temperature=0), row(repetition_penalty=1.0)], VOCAB, "cpu")
    assert (batch.biases, batch.bans, batch.penalties, batch.filters) == (None, None, None, None)
    assert not batch.changes_logits
    batch = SamplingBatch.build([row(), row(repetition_penalty=1.1), row()], VOCAB, "cpu")
    assert batch.penalties.rows.count == 1
    assert not batch.penalties.any_linear


def test_penalties_steer_greedy_decoding(sample, row):
    """Decoding fixed logits with a frequency penalty walks through the tokens in turn."""
    logits = torch.tensor([[3.0, 2.5, 2.0, 0.0]])
    tokens = torch.zeros(2, 16, dtype=torch.int32)
    tokens[1, 0] = 3
    request = row(temperature=0, frequency_penalty=1.0)
    for position in range(1, 8):
        tokens[1, position] = sample(logits, [request], torch.tensor([position]), tokens).token_ids[0]
    # after each choice the token loses 1.0; ties go to the lower id
    assert tokens[1, 1:8].tolist() == [0, 1, 0, 2, 1, 0, 2]


@pytest.mark.parametrize("params", [{"temperature": 0}, {}, {"top_p": 0.9}])
def test_stop_tokens_wait_for_min_new_tokens(sample, row, params):
    """Banned while fewer tokens than the minimum were generated, and from then on as likely as they are."""
    logits = torch.full((1, 50), -3.0)
    logits[0, [4, 9]] = torch.tensor([12.0, 11.0])
    request = row(prompt_len=5, banned=(4, 9, 4), min_new_tokens=3, **params)
    drawn = [
        sample(logits, [request], torch.tensor([position])).token_ids[0].item() for position in range(5, 12)
    ]
    assert not {4, 9} & set(drawn[:3])
    assert set(drawn[3:]) <= {4, 9}


def test_logit_bias_forces_and_forbids(sample, row):
    logits = torch.randn(100, 50, generator=torch.Generator().manual_seed(0))
    positions = torch.arange(100)
    forced = sample(logits, [row(logit_bias={17: 100})] * 100, positions)
    assert set(forced.token_ids.tolist()) == {17}
    forbidden = sample(logits, [row(logit_bias=dict.fromkeys(range(40), -100))] * 100, positions)
    assert min(forbidden.token_ids.tolist()) >= 40
