"""Which log-probabilities are reported, and that they agree with each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rootlet.sampling.logprobs import LOWEST, prompt_logprobs, top_tokens


def log_softmax(logits) -> np.ndarray:
    scores = np.asarray(logits, dtype=np.float64)
    scores = scores - scores.max(-1, keepdims=True)
    return scores - np.log(np.exp(scores).sum(-1, keepdims=True))


@settings(max_examples=100, deadline=None)
@given(
    vocab=st.integers(1, 600),
    count=st.integers(1, 40),
    levels=st.integers(1, 50),
    seed=st.integers(0, 10**6),
    banned=st.floats(0, 1),
)
def test_top_tokens_rank_by_value_then_id(vocab, count, levels, seed, banned):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, levels, (3, vocab), generator=generator).float()
    scores[torch.rand(3, vocab, generator=generator) < banned] = -torch.inf
    expected = np.argsort(-scores.numpy(), axis=1, kind="stable")[:, :count]
    assert top_tokens(scores, count).tolist() == expected.tolist()


@pytest.mark.parametrize("vocab", [30, 777])
def test_greedy_rows_report_the_processed_logits(sample, row, vocab):
    """log_softmax after biases and penalties, no temperature; the chosen token heads its list exactly."""
    logits = torch.randn(6, vocab, generator=torch.Generator().manual_seed(1)) * 3
    logits[::2] = logits[::2].bfloat16().float().round()  # ties at the top
    bias = {5: 2.0, 11: -4.0}
    requests = [
        row(temperature=t, top_k=k, logit_bias=bias, logprobs=True, top_logprobs=4)
        for t, k in [(0, -1), (0, 30), (0.5, 1), (1e-7, -1), (0, -1), (2, 1)]
    ]
    out = sample(logits, requests)
    biased = logits.clone()
    biased[:, 5] += 2
    biased[:, 11] -= 4
    wanted = log_softmax(biased)
    assert np.allclose(out.logprobs.numpy(), wanted.max(1), atol=1e-5)
    assert torch.equal(out.logprobs, out.top_values[:, 0])
    assert torch.equal(out.token_ids, out.top_ids[:, 0])
    assert np.allclose(out.top_values.numpy(), -np.sort(-wanted, axis=1)[:, :4], atol=1e-5)


@pytest.mark.parametrize("rule", [{}, {"top_k": 5}, {"min_p": 0.3}, {"top_k": 3, "min_p": 0.1}])
def test_sampled_rows_without_top_p_report_the_whole_distribution(sample, row, rule):
    """softmax(logits / temperature); top-k and min-p are not reflected."""
    logits = torch.randn(40, 200, generator=torch.Generator().manual_seed(2)) * 2
    request = row(temperature=0.8, logprobs=True, top_logprobs=6, **rule)
    out = sample(logits, [request] * 40, torch.arange(40))
    wanted = log_softmax(logits.numpy().astype(np.float64) / 0.8)
    assert np.allclose(
        out.logprobs, np.take_along_axis(wanted, out.token_ids.numpy()[:, None], 1)[:, 0], atol=1e-5
    )
    assert np.allclose(out.top_values, -np.sort(-wanted, axis=1)[:, :6], atol=1e-5)


@pytest.mark.parametrize("rule", [{}, {"top_k": 4}, {"top_k": 2, "min_p": 0.2}])
@pytest.mark.parametrize(("vocab", "spread"), [(60, 2.0), (3000, 0.3)])
def test_sampled_rows_with_top_p_report_the_renormalised_nucleus(sample, row, rule, vocab, spread):
    """Divided by what top-p alone keeps; tokens outside it have the lowest finite number.

    The second shape has a nucleus wider than the ranks that the sampler looks at first.
    """
    logits = torch.randn(30, vocab, generator=torch.Generator().manual_seed(3)) * spread
    request = row(temperature=1.2, top_p=0.7, logprobs=True, top_logprobs=40, **rule)
    out = sample(logits, [request] * 30, torch.arange(30))
    for i in range(30):
        probs = np.exp(log_softmax(logits[i].numpy().astype(np.float64) / 1.2))
        order = np.argsort(-probs, kind="stable")
        kept = order[np.cumsum(probs[order]) - probs[order] <= 0.7]
        assert out.token_ids[i].item() in kept
        wanted = np.full(vocab, float(LOWEST))
        wanted[kept] = np.log(probs[kept] / probs[kept].sum())
        assert out.top_ids[i].tolist() == order[:40].tolist()
        assert np.allclose(out.top_values[i], wanted[order[:40]], atol=1e-4, rtol=1e-6)
        assert np.isclose(out.logprobs[i], wanted[out.token_ids[i]], atol=1e-4)


def test_the_chosen_token_agrees_with_its_entry_in_the_list(sample, row):
    """Bit for bit, for every kind of row."""
    logits = torch.randn(300, 33, generator=torch.Generator().manual_seed(4)) * 3
    kinds = [
        {"temperature": 0},
        {},
        {"top_p": 0.8},
        {"top_k": 3, "temperature": 0.3},
        {"top_p": 0.5, "min_p": 0.1},
    ]
    rows = [row(seed=i, logprobs=True, top_logprobs=33, **kinds[i % len(kinds)]) for i in range(300)]
    out = sample(logits, rows)
    assert bool((out.top_values.diff(dim=1) <= 0).all())
    assert torch.equal(out.top_ids.sort(1).values, torch.arange(33).expand(300, 33))
    entry = out.top_values[out.top_ids == out.token_ids.unsqueeze(1)]
    assert torch.equal(entry, out.logprobs)


def test_rows_that_do_not_ask(sample, row):
    """Get no numbers, and a batch in which nobody asks gets no tensors."""
    logits = torch.randn(3, 20, generator=torch.Generator().manual_seed(5))
    out = sample(logits, [row(), row(logprobs=True, top_logprobs=2), row(temperature=0, top_logprobs=9)])
    assert out.logprobs.isnan().tolist() == [True, False, True]
    assert out.top_values.isnan().all(1).tolist() == [True, False, True]
    assert out.top_ids.shape == (3, 2)
    assert out.top_ids[0].tolist() == [-1, -1]
    out = sample(logits, [row(), row(logprobs=True), row()])
    assert (out.top_values, out.top_ids) == (None, None)
    assert sample(logits, [row()] * 3).logprobs is None


def test_impossible_tokens_are_clamped(sample, row):
    """-inf never leaves the sampler: JSON has no word for it."""
    logits = torch.randn(2, 40, generator=torch.Generator().manual_seed(6))
    mask = torch.tensor([[1 << 4, 0], [1 << 4, 0]], dtype=torch.int32)
    rows = [row(temperature=0, logprobs=True, top_logprobs=3), row(top_p=0.9, logprobs=True, top_logprobs=3)]
    out = sample(logits, rows, allowed_mask=mask)
    assert out.token_ids.tolist() == [4, 4]
    assert out.logprobs.tolist() == [0.0, 0.0]
    assert out.top_ids[:, 0].tolist() == [4, 4]
    assert out.top_values[:, 1:].unique().tolist() == [LOWEST]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [0, 1, 64, 130])
def test_prompt_logprobs(dtype, count):
    """log_softmax of the raw logits, the same however the rows are chunked."""
    generator = torch.Generator().manual_seed(count)
    logits = (torch.randn(count, 300, generator=generator) * 4).to(dtype)
    targets = torch.randint(0, 300, (count,), generator=generator)
    chosen, values, ids = prompt_logprobs(logits, targets, 5)
    wanted = log_softmax(logits.float().numpy()) if count else np.zeros((0, 300))
    assert np.allclose(chosen, wanted[np.arange(count), targets.numpy()], atol=1e-5)
    assert ids.tolist() == np.argsort(-logits.float().numpy(), axis=1, kind="stable")[:, :5].tolist()
    assert np.allclose(values, np.take_along_axis(wanted, ids.numpy(), 1), atol=1e-5)
    for i in range(0, count, 37):
        alone = prompt_logprobs(logits[i : i + 1], targets[i : i + 1], 5)
        assert [x[0].tolist() for x in alone] == [x[i].tolist() for x in (chosen, values, ids)]
    assert prompt_logprobs(logits, targets, 0)[1:] == (None, None)
