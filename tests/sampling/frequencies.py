"""Exact distributions of the sampling rules, and a chi-square test of tokens against them."""

from __future__ import annotations

import numpy as np
import torch

FALSE_ALARM = 1e-6
"""Of one chi-square test."""

RULES = {
    "temperature 1": {},
    "temperature 0.6": {"temperature": 0.6},
    "temperature 3": {"temperature": 3.0},
    "top-k": {"top_k": 7},
    "top-p": {"top_p": 0.8},
    "min-p": {"min_p": 0.15},
    "all together": {"temperature": 1.3, "top_k": 12, "top_p": 0.85, "min_p": 0.05},
    "top-p of one token": {"top_p": 0.01},
}


def expected_distribution(logits, temperature=1.0, top_k=None, top_p=1.0, min_p=0.0) -> np.ndarray:
    """The distribution of one row, straight from the definition, in fp64."""
    scores = np.asarray(logits, dtype=np.float64) / temperature
    probs = np.exp(scores - scores.max())
    probs /= probs.sum()
    order = np.argsort(-probs, kind="stable")
    before = np.cumsum(probs[order]) - probs[order]
    kept = (before <= top_p) & (probs[order] >= min_p * probs.max())
    if top_k is not None:
        kept &= np.arange(len(probs)) < top_k
    out = np.zeros_like(probs)
    out[order[kept]] = probs[order[kept]]
    return out / out.sum()


def assert_drawn_from(token_ids: torch.Tensor, probs: np.ndarray) -> None:
    """Chi-square of ``token_ids`` [N] on any device; tokens expected fewer than 10 times share one bin."""
    counts = np.bincount(token_ids.cpu().numpy(), minlength=len(probs)).astype(np.float64)
    assert counts[probs == 0].sum() == 0, "a token of probability 0 was drawn"
    expected = probs * len(token_ids)
    rare = expected < 10
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    counts, expected = counts[expected > 0], expected[expected > 0]
    if len(expected) == 1:
        return
    statistic = torch.tensor(((counts - expected) ** 2 / expected).sum())
    p_value = torch.special.gammaincc(torch.tensor((len(expected) - 1) / 2).double(), statistic / 2)
    assert p_value > FALSE_ALARM
