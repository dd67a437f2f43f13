"""Drawn frequencies against the exact distribution.

Chi-square tests with a false-alarm probability of 1e-6 each; seeds are fixed, so a pass stays a pass.
``tests/gpu/test_frequencies.py`` is their twin on a GPU.
"""

from __future__ import annotations

import pytest
import torch

from rootlet.sampling.draw import draw, exact_running_sums, invert, uniforms
from rootlet.sampling.scratch import Scratch
from rootlet.sampling.seeds import stream_key

from .frequencies import FALSE_ALARM, RULES, assert_drawn_from, expected_distribution

DRAWS = 30_000


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_frequencies(sample, row, rule):
    """One row's logits, one seed, as many positions as draws."""
    logits = torch.randn(40, generator=torch.Generator().manual_seed(40)) * 1.5
    positions = torch.arange(DRAWS)
    token_ids = sample(
        logits.expand(DRAWS, 40).contiguous(), [row(seed=2024, **rule)] * DRAWS, positions
    ).token_ids
    assert_drawn_from(token_ids, expected_distribution(logits, **rule))


def test_frequencies_over_seeds(sample, row):
    """One position, as many seeds as draws: what ``n > 1`` and batches rely on."""
    logits = torch.randn(50, generator=torch.Generator().manual_seed(5))
    rows = [row(seed=seed) for seed in range(10_000)]
    token_ids = sample(logits.expand(10_000, 50).contiguous(), rows).token_ids
    assert_drawn_from(token_ids, expected_distribution(logits))


def test_large_vocabulary_with_banned_tokens(sample, row):
    """Most of a large vocabulary at -inf, whole blocks of it, and a width that no block size divides."""
    vocab, draws = 3011, 8000
    logits = torch.randn(vocab, generator=torch.Generator().manual_seed(9)) * 2
    logits[300:2600] = -torch.inf
    logits[::3] = -torch.inf
    logits[-1] = 4.0
    table = logits.expand(draws, vocab).contiguous()
    token_ids = sample(table, [row(seed=1)] * draws, torch.arange(draws)).token_ids
    assert_drawn_from(token_ids, expected_distribution(logits))


@pytest.mark.parametrize("exact", [False, True])
def test_improbable_tokens_keep_their_proportions(exact):
    """Tokens of 1e-9 each beside one that takes nearly all: conditionally uniform, though far below fp32 eps.

    Uniforms are placed inside the share of the improbable ones, which come last.
    """
    draws, vocab = 10_000, 1280
    weights = torch.full((1, vocab), 1e-9)
    weights[0, 0] = 1.0
    weights /= weights.sum()
    share = float(weights[0, 1:].double().sum())
    uniform = 1 - share * 0.999 * (1 - uniforms(torch.full((draws,), stream_key(3)), torch.arange(draws)))
    running = exact_running_sums(weights) if exact else torch.cumsum(weights, 1)
    token_ids = invert(weights.expand(draws, vocab), running.expand(draws, vocab), uniform)
    drawn = token_ids[token_ids >= 128]  # the blocks that hold only improbable tokens
    counts = torch.bincount(drawn % 128, minlength=128).double()
    expected = len(drawn) / 128
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert torch.special.gammaincc(torch.tensor(127 / 2).double(), statistic / 2) > FALSE_ALARM


def test_extreme_uniforms_never_reach_weight_zero():
    """0 hits the first token that has weight, the largest number below 1 one at the end that has weight."""
    generator = torch.Generator().manual_seed(1)
    weights = torch.rand(200, 700, generator=generator) ** 8
    weights *= torch.rand(200, 700, generator=generator) < 0.02
    weights[:, 350] = 0.5
    weights /= weights.sum(1, keepdim=True)
    scratch = Scratch(torch.device("cpu"))
    has_weight = weights > 0
    first = has_weight.int().argmax(1)
    last = 699 - has_weight.flip(1).int().argmax(1)
    assert torch.equal(draw(weights, torch.zeros(200, dtype=torch.float64), scratch), first)
    top = torch.full((200,), 1 - 2.0**-53, dtype=torch.float64)
    for running in (torch.cumsum(weights, 1), exact_running_sums(weights)):
        drawn = invert(weights, running, top)
        assert bool(weights.gather(1, drawn.unsqueeze(1)).gt(0).all())
        assert bool((weights.double().cumsum(1).gather(1, drawn.unsqueeze(1)) > 1 - 1e-6).all())
        assert bool((drawn <= last).all())


def test_rounding_at_the_end_of_a_block_does_not_reach_weight_zero():
    """Weights for which (target - begin) and (end - begin) round to the same double, zeros behind them."""
    weights = torch.zeros(1, 300)
    weights[0, 0] = 1.5 * 2.0**-53
    weights[0, 140:150] = 0.075
    running = torch.zeros(1, 300)
    running[0, :140] = weights[0, 0]
    running[0, 140:] = 0.75
    top = torch.tensor([1 - 2.0**-53], dtype=torch.float64)
    begin, end = running[0, 0].double(), running[0, -1].double()
    assert top * end < end
    assert top * end - begin == end - begin
    assert 140 <= invert(weights, running, top).item() < 150
