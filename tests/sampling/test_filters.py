"""The filters keep exactly the set their definition says, in the ranking it says."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rootlet.kernels.token_mask import unpack_tokens
from rootlet.sampling.distributions import KEPT_CUT, NO_CUT, TOP_P_CUT
from rootlet.sampling.filters import draw_by_sorting, draw_filtered
from rootlet.sampling.stages import Filters

NEAR = Fraction(1, 10**11)


def reference_kept(probs: np.ndarray, top_k: int, top_p: float, min_p: float) -> list[int]:
    """The kept tokens of one row in ranking order, by exact arithmetic and one rule after the other.

    Cases that lie within 1e-11 of a threshold, but not on it, are left out: they are rounding, not rules.
    """
    exact = [Fraction(float(p)) for p in probs]
    ranking = sorted(range(len(exact)), key=lambda token: (-exact[token], token))
    kept, before = [], Fraction(0)
    for rank, token in enumerate(ranking):
        over = before - Fraction(top_p)
        short = exact[token] - Fraction(min_p) * exact[ranking[0]]
        assume(top_p >= 1 or over == 0 or abs(over) > NEAR)
        assume(short == 0 or abs(short) > NEAR)
        if rank < top_k and (top_p >= 1 or over <= 0) and short >= 0:
            kept.append(token)
        before += exact[token]
    return kept


def make_filters(
    rows: int, vocab: int, top_k: int, top_p: float, min_p: float, head: int, cut: int = TOP_P_CUT
) -> Filters:
    def column(value, dtype):
        return torch.full((rows, 1), value, dtype=dtype)

    return Filters(
        top_k=column(min(top_k, vocab), torch.int64),
        top_p=column(top_p if top_p < 1 else float("inf"), torch.float64),
        min_p=column(min_p, torch.float64),
        cut=column(cut if top_p < 1 or cut == KEPT_CUT else NO_CUT, torch.uint8),
        any_min_p=min_p > 0,
        wants_kept=cut == KEPT_CUT,
        head=min(head, vocab),
    )


def assert_equal(one, other) -> None:
    for a, b in zip(one, other):
        assert (a is None) == (b is None)
        assert a is None or torch.equal(a, b)


@st.composite
def distributions(draw) -> np.ndarray:
    """fp32 rows: halvings (sums hit thresholds exactly), few distinct logits (ties), or free logits."""
    kind = draw(st.sampled_from(["halvings", "ties", "free"]))
    size = draw(st.integers(1, 40))
    if kind == "halvings":
        parts = [Fraction(1)]
        for _ in range(size - 1):
            at = draw(st.integers(0, len(parts) - 1))
            parts[at] /= 2
            parts.append(parts[at])
        parts += [Fraction(0)] * draw(st.integers(0, 3))
        return np.array(draw(st.permutations(parts)), dtype=np.float32)
    steps = st.integers(-3, 3) if kind == "ties" else st.integers(-4000, 4000)
    logits = draw(st.lists(steps, min_size=size, max_size=size))
    scale = 1.0 if kind == "ties" else 1 / 400
    logits = [x * scale if draw(st.integers(0, 9)) else -np.inf for x in logits]
    assume(max(logits) > -np.inf)
    return torch.softmax(torch.tensor(logits), 0).numpy()


rules = st.fixed_dictionaries(
    {
        "top_k": st.one_of(st.integers(1, 8), st.just(10**6)),
        "top_p": st.one_of(st.sampled_from([1.0, 0.5, 0.25, 0.75, 0.125]), st.floats(0.01, 0.999)),
        "min_p": st.one_of(st.sampled_from([0.0, 0.5, 0.25, 1.0]), st.floats(0.0, 1.0)),
    }
)


@settings(max_examples=150, deadline=None)
@given(probs=distributions(), rule=rules, head=st.integers(1, 12))
def test_kept_set_equals_the_definition(probs, rule, head):
    """Aim one draw at the middle of every kept token's share, one at 0 and one just below 1.

    The last one must hit the last kept token: since filters keep a beginning of the ranking, that pins
    down the set. Both implementations, and whatever number of tokens is looked at first.
    """
    kept = reference_kept(probs, **rule)
    masses = probs[kept].astype(np.float64)
    reachable = [token for token, mass in zip(kept, masses) if mass > 2.0**-50]
    assume(all(mass == 0 or mass > 2.0**-50 for mass in masses))
    masses = masses[: len(reachable)]
    middles = (np.cumsum(masses) - masses / 2) / masses.sum()
    uniform = torch.tensor([*middles, 0.0, 1 - 2.0**-53], dtype=torch.float64)
    assume(bool((uniform.diff()[: len(reachable) - 1] > 1e-12).all()))
    table = torch.from_numpy(probs).repeat(len(uniform), 1)
    expected = [*reachable, reachable[0], reachable[-1]]

    results = [
        draw_filtered(table, uniform, make_filters(*table.shape, head=head, **rule)),
        draw_filtered(table, uniform, make_filters(*table.shape, head=len(probs), **rule)),
        draw_by_sorting(table, uniform, make_filters(*table.shape, head=len(probs), **rule)),
    ]
    assert results[0].token_ids.tolist() == expected
    for other in results[1:]:
        assert_equal(results[0], other)

    nucleus = reference_kept(probs, top_k=len(probs), top_p=rule["top_p"], min_p=0.0)
    assert results[0].size.tolist() == [len(nucleus)] * len(uniform)
    share = float(sum(probs[nucleus].astype(np.float64))) if rule["top_p"] < 1 else 1.0
    assert np.allclose(results[0].mass.numpy(), share, rtol=0, atol=1e-12)


@settings(max_examples=150, deadline=None)
@given(probs=distributions(), rule=rules, head=st.integers(1, 12))
def test_what_is_told_of_the_kept_set_equals_the_definition(probs, rule, head):
    """Its mass, its size and its members, by both implementations, and however many tokens are looked at
    first; tokens without probability may be in it, for ranks are all that the rules look at."""
    kept = reference_kept(probs, **rule)
    table, uniform = torch.from_numpy(probs).repeat(2, 1), torch.tensor([0.0, 0.5], dtype=torch.float64)
    for draw, width in ((draw_filtered, head), (draw_filtered, len(probs)), (draw_by_sorting, len(probs))):
        got = draw(table, uniform, make_filters(*table.shape, head=width, cut=KEPT_CUT, **rule))
        assert got.size.tolist() == [len(kept)] * 2
        share = float(sum(probs[kept].astype(np.float64)))
        assert np.allclose(got.mass.numpy(), share, rtol=0, atol=1e-12)
        assert [unpack_tokens(words, len(probs)).tolist() for words in got.kept.numpy()] == [sorted(kept)] * 2


def test_flat_rows_fall_back_beside_peaked_ones():
    """Rows whose cut lies beyond the head are settled by whole sorts, and land in their own place."""
    vocab, head = 5000, 64
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(24, vocab, generator=generator)
    logits[::3] *= 12
    probs = torch.softmax(logits, 1)
    uniform = torch.rand(24, generator=generator, dtype=torch.float64)
    rule = {"top_k": vocab, "top_p": 0.95, "min_p": 0.0}
    quick = draw_filtered(probs, uniform, make_filters(24, vocab, head=head, **rule))
    whole = draw_by_sorting(probs, uniform, make_filters(24, vocab, head=vocab, **rule))
    assert_equal(quick, whole)
    assert int(quick.size.min()) < head < int(quick.size.max())
    quick = draw_filtered(probs, uniform, make_filters(24, vocab, head=head, cut=KEPT_CUT, **rule))
    whole = draw_by_sorting(probs, uniform, make_filters(24, vocab, head=vocab, cut=KEPT_CUT, **rule))
    assert_equal(quick, whole)


def test_a_row_of_one_value_is_ranked_by_id():
    """With all tokens equal, top-k keeps the lowest ids, even where the head cuts through the ties."""
    probs = torch.full((8, 256), 1 / 256)
    uniform = torch.arange(8, dtype=torch.float64) / 8
    for head in (4, 16, 256):
        drawn = draw_filtered(probs, uniform, make_filters(8, 256, 8, 1.0, 0.0, head))
        assert drawn.token_ids.tolist() == list(range(8))
