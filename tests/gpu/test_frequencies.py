"""Drawn frequencies on the GPU against the exact distribution: twin of ``sampling/test_frequencies.py``.

Each chi-square test raises a false alarm with a probability of 1e-6, all 26 of this file together with at
most 2.6e-5; seeds are fixed, so a pass stays a pass. The sampler is called directly, with thousands of rows.
"""

from __future__ import annotations

import pytest
import torch

from rootlet.sampling.batch import SamplingBatch
from rootlet.sampling.params import SamplingParams
from rootlet.sampling.rows import SamplingRow
from rootlet.sampling.sampler import Sampler

from ..sampling.frequencies import RULES, assert_drawn_from, expected_distribution

ROWS, STEPS = 20_000, 10


def random_logits(vocab: int, scale: float, dtype: torch.dtype) -> torch.Tensor:
    """[V], the same every time."""
    return (torch.randn(vocab, generator=torch.Generator().manual_seed(vocab)) * scale).to(dtype)


LOGITS = {
    "40 tokens": random_logits(40, 1.5, torch.float32),
    # several blocks of the kernels, a width that none divides, many equal logits
    "50001 tokens in bf16": random_logits(50_001, 2.0, torch.bfloat16),
}


def row(seed: int, params: SamplingParams) -> SamplingRow:
    return SamplingRow(params, seed, slot=1, prompt_len=1)


def draw(logits: torch.Tensor, rows: list[SamplingRow], steps: int = STEPS) -> torch.Tensor:
    """Token ids ``[steps, rows]``, drawn at ``steps * rows`` positions, from ``logits`` [V] in every row."""
    vocab, device = len(logits), torch.device("cuda")
    sampler, batch = Sampler(vocab, device), SamplingBatch.build(rows, vocab, device)
    table = logits.to(device).expand(len(rows), vocab)  # one row in memory
    tokens = torch.zeros(2, 8, dtype=torch.int32, device=device)
    drawn = []
    for step in range(steps):
        positions = torch.arange(step * len(rows), (step + 1) * len(rows), device=device)
        output = sampler.sample(table, batch, positions, tokens)
        assert not output.flags.any()
        drawn.append(output.token_ids)
    return torch.stack(drawn)


@pytest.mark.parametrize("logits", LOGITS.values(), ids=LOGITS.keys())
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_frequencies(rule, logits):
    """One seed, as many positions as draws."""
    token_ids = draw(logits, [row(2024, SamplingParams(**rule))] * ROWS)
    assert_drawn_from(token_ids.flatten(), expected_distribution(logits.double(), **rule))


def test_frequencies_of_rules_side_by_side():
    """Rows of all rules and greedy ones in turn: each kernel picks its own rows from the batch."""
    logits = LOGITS["40 tokens"]
    rules = [*RULES.values(), {"temperature": 0}]
    params = [SamplingParams(**rule) for rule in rules]
    token_ids = draw(logits, [row(7, one) for _ in range(ROWS // len(rules)) for one in params])
    for i, rule in enumerate(rules[:-1]):
        drawn = token_ids[:, i :: len(rules)].flatten()
        assert_drawn_from(drawn, expected_distribution(logits.double(), **rule))
    assert bool((token_ids[:, len(rules) - 1 :: len(rules)] == int(logits.argmax())).all())


@pytest.mark.parametrize("rule", ["temperature 1", "all together"])
def test_frequencies_over_seeds(rule):
    """As many seeds as draws, neighbouring ones: what ``n > 1`` and batches rely on."""
    logits = LOGITS["40 tokens"]
    params = SamplingParams(**RULES[rule])
    token_ids = draw(logits, [row(seed, params) for seed in range(ROWS)], steps=1)
    assert_drawn_from(token_ids.flatten(), expected_distribution(logits.double(), **RULES[rule]))
