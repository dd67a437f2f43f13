"""Paged attention against its reference and torch's own: ragged rows, pages, windows, soft caps."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rootlet.errors import ModelError
from rootlet.kernels import attention
from rootlet.kernels.attention import paged_attention, paged_attention_reference
from rootlet.kernels.scoring import Scoring
from rootlet.kernels.threads import Team

# decode rows, whole prompts, chunks behind a prefix, lengths at and next to tiles (64) and spans (256)
MIXED = [(1, 1), (1, 300), (7, 7), (5, 513), (70, 100), (1, 64), (1, 65), (33, 257), (1, 256)]
HEADS = [(9, 3, 64), (4, 2, 128), (8, 1, 40), (4, 2, 20), (2, 1, 7), (3, 1, 80), (7, 1, 256), (5, 5, 8)]
TOLERANCE = {
    torch.float32: {"atol": 2e-5, "rtol": 1e-4},
    torch.bfloat16: {"atol": 1e-2, "rtol": 1e-2},
}


def run(case, *, window=None, soft_cap=None, q=None):
    q = case.q if q is None else q
    return paged_attention(q, case.k, case.v, case.plan, Scoring(q.shape[2] ** -0.5, window, soft_cap))


def reference(case, *, window=None, soft_cap=None):
    scale = case.q.shape[2] ** -0.5
    return paged_attention_reference(case.q, case.k, case.v, case.plan, Scoring(scale, window, soft_cap))


@pytest.mark.usefixtures("c_build")
@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize(
    ("page_size", "window", "soft_cap"), [(1, 100, None), (3, None, 20.0), (16, None, None)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_mixed_rows(paged_case, dtype, page_size, window, soft_cap, heads):
    case = paged_case(MIXED, page_size=page_size, heads=heads, dtype=dtype)
    actual = run(case, window=window, soft_cap=soft_cap)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual, reference(case, window=window, soft_cap=soft_cap), **TOLERANCE[dtype])


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("window", [None, 1, 3, 64, 300])
def test_against_torch_attention(paged_case, window):
    case = paged_case(MIXED, page_size=16, heads=(6, 2, 32))
    out = run(case, window=window)
    starts = case.plan.q_starts.tolist()
    for row, (num_q, context) in enumerate(MIXED):
        q, keys, values = (x.transpose(0, 1) for x in case.row_tensors(row))
        position = torch.arange(context - num_q, context)[:, None]
        visible = torch.arange(context) <= position
        if window is not None:
            visible &= torch.arange(context) > position - window
        expected = F.scaled_dot_product_attention(
            q, keys.repeat_interleave(3, 0), values.repeat_interleave(3, 0), attn_mask=visible
        )
        torch.testing.assert_close(out[starts[row] : starts[row + 1]], expected.transpose(0, 1))


@pytest.mark.usefixtures("c_build")
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 300)), max_size=5),
    page_size=st.integers(1, 40),
    heads=st.tuples(st.integers(1, 3), st.integers(1, 13), st.integers(1, 70)),
    window=st.none() | st.integers(1, 350),
    soft_cap=st.none() | st.floats(0.5, 60),
)
def test_any_geometry(paged_case, rows, page_size, heads, window, soft_cap):
    num_kv, group, dim = heads
    rows = [(num_q, num_q + prefix) for num_q, prefix in rows]
    case = paged_case(rows, page_size=page_size, heads=(num_kv * group, num_kv, dim))
    actual = run(case, window=window, soft_cap=soft_cap)
    torch.testing.assert_close(
        actual, reference(case, window=window, soft_cap=soft_cap), **TOLERANCE[torch.float32]
    )


@pytest.mark.usefixtures("c_build")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("heads", "window", "soft_cap"),
    [((9, 3, 64), None, None), ((8, 1, 40), 150, None), ((2, 2, 12), None, 5.0), ((7, 1, 80), 300, 20.0)],
)
def test_result_depends_on_nothing_but_the_tokens(paged_case, heads, window, soft_cap, dtype):
    """Alone, in a batch, in chunks, in other pages, on other numbers of threads: bitwise the same with C."""
    context = 700
    case = paged_case([(context, context), (9, 30)], page_size=16, heads=heads, dtype=dtype)
    whole = run(case, window=window, soft_cap=soft_cap)[:context]
    cuts = [0, 3, 64, 200, 201, 520, context]
    chunks = [(0, end - start, end) for start, end in itertools.pairwise(cuts)]
    decode = [(0, 1, end) for end in (1, 64, 65, 256, 257, 699, 700)]

    def check(rows, page_size):
        again = case.repaged(rows, page_size)
        actual = run(again, window=window, soft_cap=soft_cap)
        expected = torch.cat([whole[end - num_q : end] for _, num_q, end in rows])
        if attention._C is None:
            torch.testing.assert_close(actual, expected, **TOLERANCE[dtype])
        else:
            assert torch.equal(actual, expected)

    check(chunks, 1)
    check(decode, 7)
    check([(0, context, context)], 5)
    for count in (1, 2, 3):
        with Team(count, kernels=attention._C).bound():
            check(decode[-1:], 16)
            check([*chunks[:2], *decode], 3)


@pytest.mark.usefixtures("implementation")
def test_values_out_of_sight_are_never_used(paged_case):
    """A page slid out of the window may belong to somebody else, and the tail of the last page is unset."""
    case = paged_case([(3, 200), (1, 37), (40, 90)], page_size=4, heads=(4, 2, 16))
    expected = run(case, window=5)
    for row, (num_q, context) in enumerate(case.rows):
        pages = case.plan.page_table[row].tolist()
        for position in range(-(-context // 4) * 4):
            if position <= context - num_q - 5 or position >= context:
                case.k[pages[position // 4], position % 4] = float("nan")
                case.v[pages[position // 4], position % 4] = float("nan")
    if attention._C is None:  # 0 * NaN: the reference reads what it masks
        assert run(case, window=5).isnan().any()
    else:
        assert torch.equal(run(case, window=5), expected)


@pytest.mark.usefixtures("implementation")
def test_empty_batch(paged_case):
    case = paged_case([], page_size=4, heads=(4, 2, 16))
    assert run(case).shape == (0, 4, 16)


@pytest.mark.usefixtures("c_build")
def test_rows_without_queries(paged_case):
    case = paged_case([(0, 0), (2, 6), (0, 9), (1, 4)], page_size=4, heads=(4, 2, 16))
    torch.testing.assert_close(run(case), reference(case))


@pytest.mark.usefixtures("implementation")
def test_strided_queries(paged_case):
    case = paged_case([(5, 9)], page_size=4, heads=(4, 2, 16))
    wide = torch.randn(5, 7, 16)
    wide[:, :4] = case.q
    assert torch.equal(run(case, q=wide[:, :4]), run(case))


@pytest.mark.usefixtures("c_build")
def test_large_scores(paged_case):
    """Scores in the thousands: the maximum is subtracted before anything is raised to a power."""
    case = paged_case([(6, 70), (1, 300)], page_size=16, heads=(4, 2, 32))
    case.q.mul_(300)
    case.k.mul_(30)
    torch.testing.assert_close(run(case), reference(case), atol=1e-3, rtol=1e-3)


@pytest.mark.usefixtures("implementation")
def test_cache_of_other_heads_is_refused(paged_case):
    case = paged_case([(1, 4)], page_size=4, heads=(4, 2, 16))
    with pytest.raises(ValueError, match="does not fit the caches"):
        run(case, q=torch.zeros(1, 3, 16))
    with pytest.raises(ValueError, match="does not fit the caches"):
        run(case, q=torch.zeros(1, 4, 8))


@pytest.mark.usefixtures("implementation")
def test_strided_cache_is_refused(paged_case):
    case = paged_case([(1, 4)], page_size=4, heads=(4, 2, 16))
    case.k = case.k.transpose(0, 1).contiguous().transpose(0, 1)
    with pytest.raises(ValueError, match="contiguous"):
        run(case)


@pytest.mark.usefixtures("implementation")
def test_window_of_nothing_is_refused(paged_case):
    case = paged_case([(1, 4)], page_size=4, heads=(4, 2, 16))
    with pytest.raises(ValueError, match="window is 0"):
        run(case, window=0)


@pytest.mark.usefixtures("implementation")
def test_plan_that_does_not_fit_is_refused(paged_case):
    case = paged_case([(3, 4)], page_size=4, heads=(4, 2, 16))
    for change in (
        {"q_starts": torch.tensor([0, 2], dtype=torch.int32)},
        {"kv_lens": torch.tensor([2], dtype=torch.int32)},
        {"kv_lens": torch.tensor([400], dtype=torch.int32)},
    ):
        wrong = dataclasses.replace(case.plan, **change)
        with pytest.raises(ValueError, match="q tokens"):
            paged_attention(case.q, case.k, case.v, wrong, Scoring(1.0))


@pytest.mark.usefixtures("implementation")
def test_page_that_does_not_exist_is_refused(paged_case):
    case = paged_case([(2, 9)], page_size=4, heads=(4, 2, 16))
    case.plan.page_table[0, 1] = len(case.k)
    with pytest.raises(IndexError):
        run(case)


@pytest.mark.usefixtures("implementation")
def test_plan_of_wrong_types_is_refused(paged_case):
    case = paged_case([(2, 9)], page_size=4, heads=(4, 2, 16))
    with pytest.raises(ValueError, match="int32"):
        _ = dataclasses.replace(case.plan, kv_lens=case.plan.kv_lens.long()).native_arguments
    with pytest.raises(ValueError, match=r"\[R, P\]"):
        _ = dataclasses.replace(case.plan, page_table=case.plan.page_table[0]).native_arguments


def dense(case, row, scoring):
    """What a scoring means, position by position."""
    q, keys, values = (tensor.float() for tensor in case.row_tensors(row))
    out = torch.empty_like(q)
    for i, head in itertools.product(range(len(q)), range(q.shape[1])):
        p, kv_head = len(keys) - len(q) + i, head // (q.shape[1] // keys.shape[1])
        scores, seen = [], []
        for k in range(len(keys)):
            near = scoring.window is None or abs(p - k) < scoring.window
            if not near or (scoring.causal and k > p):
                continue
            score = float(q[i, head] @ keys[k, kv_head]) * scoring.scale
            if scoring.slopes is not None:
                score -= scoring.slopes[head] * abs(p - k)
            scores.append(score)
            seen.append(values[k, kv_head])
        if scoring.sinks is not None:
            scores.append(float(scoring.sinks[head]))
            seen.append(torch.zeros(q.shape[2]))
        out[i, head] = torch.tensor(scores).softmax(0) @ torch.stack(seen)
    return out


@pytest.mark.parametrize(
    "fields",
    [
        {"sinks": torch.tensor([0.5, -1.0, 2.0, 0.0])},
        {"slopes": (0.5, 0.25, 0.125, 0.0625)},
        {"causal": False},
        {"causal": False, "window": 3, "sinks": torch.ones(4), "slopes": (1.0, 0.0, 0.5, 2.0)},
    ],
    ids=lambda fields: "-".join(fields),
)
def test_scorings_that_only_the_reference_knows(paged_case, fields):
    case = paged_case([(1, 9), (5, 12), (4, 4)], page_size=4, heads=(4, 2, 8))
    scoring = Scoring(0.3, **fields)
    out = paged_attention(case.q, case.k, case.v, case.plan, scoring)
    torch.testing.assert_close(out, torch.cat([dense(case, row, scoring) for row in range(3)]))


def test_scorings_are_alike_by_what_they_ask_for():
    sinks = torch.zeros(2)
    assert Scoring(1.0, window=4) == Scoring(1.0, 4)
    assert hash(Scoring(1.0, slopes=(1.0,))) == hash(Scoring(1.0, slopes=(1.0,)))
    assert Scoring(1.0, sinks=sinks) == Scoring(1.0, sinks=sinks) != Scoring(1.0, sinks=sinks.clone())
    assert Scoring(1.0).asks == frozenset()
    assert Scoring(1.0, 4, 2.0, sinks, (1.0,), causal=False).asks == attention.CAN


def test_a_number_for_each_head_is_needed(paged_case):
    case = paged_case([(1, 9)], page_size=4, heads=(4, 2, 8))
    with pytest.raises(ValueError, match="3 slopes for 4 q heads"):
        paged_attention(case.q, case.k, case.v, case.plan, Scoring(1.0, slopes=(1.0, 1.0, 1.0)))


def test_a_model_is_told_what_no_kernel_of_its_device_knows():
    pytest.importorskip("supported_triton")
    scoring = Scoring(1.0, window=8, slopes=(1.0, 1.0))
    attention.check_device(scoring, torch.device("cpu"))
    with pytest.raises(ModelError, match=r"has slopes, which no kernel on cuda .*: soft_cap, window"):
        attention.check_device(scoring, torch.device("cuda"))
