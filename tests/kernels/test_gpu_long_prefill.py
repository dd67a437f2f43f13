"""Long prefill rows: gathering, merging and cutting in the interpreter, cuDNN itself on a GPU only."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("supported_triton")

from rootlet.cache.kv_spec import KVGroup
from rootlet.cache.slot_tables import SlotTables
from rootlet.engine.steps import triton_planner
from rootlet.kernels.attention import paged_attention_reference
from rootlet.kernels.gpu import long_prefill
from rootlet.kernels.gpu.attention import PrefillRows, TritonAttentionPlan
from rootlet.kernels.gpu.long_prefill import (
    LongRow,
    attend_long,
    can_use,
    gather_pages,
    long_rows,
    merge_pair,
    prefix_parts,
    tiles_outside,
)
from rootlet.kernels.gpu.prefill_attention import prefill_config, prefill_tiles, tile_tokens
from rootlet.kernels.scoring import Scoring

# Largest error relative to the largest result; every part's result is rounded to bf16 before it is merged.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}


@pytest.fixture
def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def assert_close(actual, expected, dtype):
    assert actual.dtype == dtype
    actual, expected = actual.float().cpu(), expected.float().cpu()
    error = (actual - expected).abs().max() / expected.abs().max()
    assert error < TOLERANCE[dtype], f"relative error {error:.2e}"


def dense_attention(q, keys, values, scale, *, causal):
    """What cuDNN computes: the same signature, exact."""
    num_q, num_heads, _ = q.shape
    keys, values = (t.float().repeat_interleave(num_heads // t.shape[1], dim=1) for t in (keys, values))
    scores = torch.einsum("qhd,khd->hqk", q.float(), keys) * scale
    if causal:
        assert num_q == len(keys)
        unseen = torch.ones(num_q, num_q, dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(unseen, float("-inf"))
    out = torch.einsum("hqk,khd->qhd", scores.softmax(-1), values)
    return out.to(q.dtype), scores.logsumexp(-1)


@pytest.fixture
def exact(monkeypatch):
    """Put :func:`dense_attention` in cuDNN's place; its calls, as (queries, keys, heads of K, causal)."""
    calls = []

    def attention(q, keys, values, scale, *, causal):
        calls.append((len(q), len(keys), keys.shape[1], causal))
        return dense_attention(q, keys, values, scale, causal=causal)

    monkeypatch.setattr(long_prefill, "_cudnn_attention", attention)
    return calls


def on_device(case, device):
    """(q, K, V, page table) of a case there, NaN wherever no row's token lies."""
    page_size = case.plan.page_size
    used = torch.zeros(case.k.shape[:2], dtype=torch.bool)
    for row, (_, context) in enumerate(case.rows):
        position = torch.arange(context)
        used[case.plan.page_table[row, position // page_size].long(), position % page_size] = True
    case.k[~used] = float("nan")
    case.v[~used] = float("nan")
    return case.q.to(device), case.k.to(device), case.v.to(device), case.plan.page_table.to(device)


def reference(case, window=None, soft_cap=None):
    scale = case.q.shape[2] ** -0.5
    return paged_attention_reference(case.q, case.k, case.v, case.plan, Scoring(scale, window, soft_cap))


@pytest.mark.parametrize("expand_kv", [False, True])
@pytest.mark.parametrize(
    ("num_q", "context", "page_size", "parts", "dtype"),
    [
        (70, 70, 16, None, torch.float32),  # no prefix
        (70, 70, 16, None, torch.bfloat16),
        (33, 96, 16, None, torch.float32),  # the prefix ends within a page
        (33, 96, 128, (40, 23), torch.bfloat16),
        (64, 240, 32, (128, 32, 16), torch.float32),
        (5, 37, 1, (1, 30, 1), torch.bfloat16),
    ],
)
def test_attend_long(paged_case, device, exact, num_q, context, page_size, parts, dtype, expand_kv):
    case = paged_case([(num_q, context)], page_size=page_size, heads=(6, 2, 64), dtype=dtype)
    q, k, v, table = on_device(case, device)
    wide = torch.full((num_q, 9, 64), float("nan"), dtype=dtype, device=device)
    wide[:, 1:7] = q
    prefix = context - num_q
    arguments = wide[:, 1:7], k, v, table[0], prefix, Scoring(64**-0.5)
    options = {"prefix_parts": parts, "expand_kv": expand_kv}
    expected = reference(case)
    assert_close(attend_long(*arguments, **options), expected, dtype)
    out = torch.full((num_q, 7, 64), float("nan"), dtype=dtype, device=device)
    place = out[:, :6]
    assert attend_long(*arguments, **options, out=place) is place
    assert_close(place, expected, dtype)
    assert out[:, 6].isnan().all()
    heads = 6 if expand_kv else 2
    lengths = parts or ((prefix,) if prefix else ())
    assert exact[: len(exact) // 2] == [
        (num_q, num_q, heads, True),
        *((num_q, length, heads, False) for length in reversed(lengths)),
    ]


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize(("page_size", "block"), [(16, 4096), (64, 256), (1, 32)])
def test_gather_pages(device, page_size, block, repeats):
    random = torch.Generator().manual_seed(0)
    k, v = torch.randn(2, 9, page_size, 3, 20, generator=random).to(device, torch.bfloat16)
    ids = torch.tensor([7, 2, 8, 1, 2**31 - 1], dtype=torch.int32, device=device)
    count = 3 * page_size + (page_size + 1) // 2
    found = gather_pages(k, v, ids, count, repeats=repeats, block=block)
    for dense, cache in zip(found, (k, v)):
        expected = cache[ids[:4].long()].flatten(0, 1)[:count].repeat_interleave(repeats, dim=1)
        assert torch.equal(dense, expected)
    assert gather_pages(k, v, ids[:0], 0)[0].shape == (0, 3, 20)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(37, 5, 64), (2, 3, 80)])
def test_merge_pair(device, shape, dtype):
    random = torch.Generator().manual_seed(1)
    tokens, heads, _ = shape
    first, second = torch.randn(2, *shape, generator=random).to(dtype).to(device)
    lses = (torch.randn(2, heads, tokens, generator=random) * 40).to(device)  # beyond what exp in fp32 takes
    lses[0, :, 0] = 1000.0
    lses[1, :, 1] = 1000.0
    weights = lses.double().softmax(0).transpose(1, 2)[..., None]
    expected = weights[0] * first.double() + weights[1] * second.double()
    total = lses.double().logsumexp(0)
    strided = torch.full((tokens, heads), float("nan"), device=device).T  # lse with tokens outermost
    strided.copy_(lses[0])
    out = torch.full_like(first, float("nan"))
    assert merge_pair(first, strided, second, lses[1], out=out) is out
    assert_close(out, expected, dtype)
    assert torch.allclose(strided.double(), total, atol=1e-4)
    merge_pair(first, lses[0], second, lses[1], out=first)  # in place
    assert torch.equal(first, out)
    with pytest.raises(ValueError, match="must be"):
        merge_pair(first, lses[0].T, second, lses[1], out=out)
    with pytest.raises(ValueError, match="alike"):
        merge_pair(first, lses[0], second[1:], lses[1], out=out)
    with pytest.raises(ValueError, match="float32"):
        merge_pair(first, lses[0].double(), second, lses[1], out=out)


def test_prefix_parts():
    assert prefix_parts(0, 16) == ()
    assert prefix_parts(208, 16) == (128, 64, 16)
    assert prefix_parts(24576) == (16384, 8192)
    with pytest.raises(ValueError, match="multiple of unit"):
        prefix_parts(100, 16)


def test_long_rows_begin_and_end_at_multiples():
    counts = np.array([8192, 1, 8192, 2047, 5000, 8191, 2100])
    kv_lens = np.array([8192, 9000, 16384, 30000, 5000, 20000, 25000])
    slots = np.arange(10, 17, dtype=np.int32)
    q_starts = np.concatenate(([5], 5 + np.cumsum(counts))).astype(np.int32)
    rows = long_rows(slots, q_starts, counts, kv_lens)
    assert rows == (
        LongRow(0, 10, 5, 8192, 8192, ()),
        LongRow(2, 12, 5 + 8193, 8192, 16384, (8192,)),
        # positions 11809 to 20000, of which 12288 to 18432 are whole units
        LongRow(5, 15, int(q_starts[5]) + 479, 6144, 18432, (8192, 4096)),
    )
    assert all(type(value) is int for row in rows for value in row[:5])
    assert long_rows(slots, q_starts, counts, kv_lens, min_mean_keys=0)[2].row == 4


def test_tiles_outside_leaves_out_what_lies_within_a_part():
    counts, q_starts = np.array([40, 7, 100]), np.array([3, 43, 50, 150])
    tiles = prefill_tiles(counts, 8)
    parts = [LongRow(0, 1, 3, 40, 40, ()), LongRow(2, 2, 50 + 20, 64, 84, ())]
    kept = tiles_outside(tiles, 8, q_starts, parts)
    assert kept.dtype == np.int32
    assert kept.flags.c_contiguous
    # of the last row the tiles with a token before 20 or after 83
    assert sorted(map(tuple, kept.T)) == [(1, 0), *((2, first) for first in (0, 8, 16, 80, 88, 96))]


@pytest.mark.parametrize(
    ("window", "soft_cap", "used"), [(None, None, True), (30, None, False), (None, 5.0, False)]
)
def test_plan_with_long_rows(paged_case, device, exact, window, soft_cap, used):
    rows = [(70, 70), (9, 20), (50, 101), (64, 64)]
    case = paged_case(rows, page_size=8, heads=(4, 2, 32))
    q, k, v, table = on_device(case, device)
    slots = np.array([6, 2, 0, 3], dtype=np.int32)
    pages = torch.full((8, table.shape[1]), 2**31 - 1, dtype=torch.int32, device=device)
    pages[slots] = table
    counts, kv_lens = (np.array(column, dtype=np.int32) for column in zip(*rows))
    q_starts = case.plan.q_starts.numpy()
    config = prefill_config(32, 8, q.dtype)
    tokens = tile_tokens(config.block_m, 4, 2)
    tiles = prefill_tiles(counts, tokens, kv_lens)
    parts = long_rows(slots, q_starts, counts, kv_lens, unit=16, min_mean_keys=0)
    assert [(part.num_tokens, part.kv_len, part.prefix_parts) for part in parts] == [
        (64, 64, ()),
        (32, 96, (64,)),
        (64, 64, ()),
    ]
    short = tiles_outside(tiles, tokens, q_starts, parts)
    assert 0 < short.shape[1] < tiles.shape[1]
    sent = [torch.from_numpy(array).to(device) for array in (slots, kv_lens, q_starts, tiles, short)]
    plan = TritonAttentionPlan(pages, None, PrefillRows(*sent[:4], parts, sent[4]))
    out = plan.attend(q, k, v, Scoring(32**-0.5, window, soft_cap))
    assert_close(out, reference(case, window, soft_cap), torch.float32)
    assert bool(exact) is used


def test_plan_of_a_single_long_row_copies_nothing(paged_case, device, exact):
    case = paged_case([(32, 64)], page_size=16, heads=(4, 2, 32))
    q, k, v, table = on_device(case, device)
    one = [torch.tensor(values, dtype=torch.int32, device=device) for values in ([0], [64], [0, 32])]
    none = torch.zeros(2, 0, dtype=torch.int32, device=device)
    part = LongRow(0, 0, 0, 32, 64, (32,))
    plan = TritonAttentionPlan(table, None, PrefillRows(*one, none, (part,), none))
    assert_close(plan.attend(q, k, v, Scoring(32**-0.5)), reference(case), torch.float32)
    assert exact == [(32, 32, 2, True), (32, 32, 2, False)]


def test_inputs_plan_long_rows(monkeypatch):
    monkeypatch.setattr(triton_planner, "can_use", lambda *_: True)
    group = KVGroup.paged([0], num_q_heads=8, num_kv_heads=2, head_dim=64, dtype=torch.bfloat16)
    tables = SlotTables(4, 20000, 128, "cpu")
    planner = triton_planner.TritonPlanner(tables.pages, group, 128, share_prefixes=False)
    layout = SimpleNamespace(
        num_decodes=2,
        num_rows=4,
        slots=np.array([1, 2, 3, 0], dtype=np.int32),
        counts=np.array([1, 1, 8200, 40], dtype=np.int32),
        kv_lens=np.array([5, 6, 16400, 40], dtype=np.int32),
        q_starts=np.array([0, 1, 2, 8202, 8242], dtype=np.int32),
    )
    rows = planner._prefill_rows(layout, 2)
    assert rows.long_rows == (LongRow(0, 3, 2 + 2040, 6144, 16384, (8192, 2048)),)
    tokens = planner._tile_tokens
    short = set(map(tuple, rows.short_tiles.T.tolist()))
    dropped = set(map(tuple, rows.tiles.T.tolist())) - short
    assert dropped == {(0, first) for first in range(0, 8200, tokens) if 2040 <= first <= 8184 - tokens}
    monkeypatch.setattr(triton_planner, "can_use", lambda *_: False)
    plain = triton_planner.TritonPlanner(tables.pages, group, 128, share_prefixes=False)
    plain = plain._prefill_rows(layout, 2)
    assert plain.long_rows == ()
    assert torch.equal(plain.tiles, rows.tiles)


def test_wrong_arguments_are_refused(paged_case, device, exact):
    case = paged_case([(4, 20)], page_size=16, heads=(4, 2, 32))
    q, k, v, table = on_device(case, device)
    with pytest.raises(ValueError, match="add up to 16"):
        attend_long(q, k, v, table[0], 16, Scoring(1.0), prefix_parts=(8, 4))
    with pytest.raises(ValueError, match="at least \\[2\\] int32"):
        attend_long(q, k, v, table[0, :1], 16, Scoring(1.0))
    with pytest.raises(ValueError, match="int32"):
        attend_long(q, k, v, table[0].long(), 16, Scoring(1.0))
    with pytest.raises(ValueError, match="does not know window"):
        attend_long(q, k, v, table[0], 16, Scoring(1.0, window=8))
    assert not exact


def test_can_use_needs_what_was_measured():
    cpu = torch.device("cpu")
    assert not can_use(cpu, torch.bfloat16, 128)
    cuda = torch.device("cuda")
    assert not can_use(cuda, torch.float32, 128)
    assert not can_use(cuda, torch.bfloat16, 96)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("expand_kv", [False, True])
@pytest.mark.parametrize(
    ("num_q", "context", "heads", "parts"),
    [
        (2048, 2048, (8, 2, 128), None),
        (2048, 6144, (8, 2, 64), None),
        (4096, 10240, (4, 4, 128), (4096, 2048)),
        (4096, 6144, (14, 2, 64), (2048,)),
    ],
)
def test_cudnn(paged_case, device, num_q, context, heads, parts, expand_kv):
    if not can_use(torch.device(device), torch.bfloat16, heads[2]):
        pytest.skip("needs a GPU of compute capability 9.x and cuDNN")
    case = paged_case([(num_q, context)], page_size=128, heads=heads, dtype=torch.bfloat16)
    q, k, v, table = on_device(case, device)
    fused = torch.full((num_q, heads[0] + 2, heads[2]), float("nan"), dtype=q.dtype, device=device)
    fused[:, : heads[0]] = q
    q = fused[:, : heads[0]]
    prefix, scale = context - num_q, heads[2] ** -0.5
    out, lse = long_prefill._cudnn_attention(q, *gather_pages(k, v, table[0], num_q), scale, causal=False)
    _, expected = dense_attention(q, *gather_pages(k, v, table[0], num_q), scale, causal=False)
    assert torch.allclose(lse, expected, atol=5e-3)
    out = attend_long(q, k, v, table[0], prefix, Scoring(scale), prefix_parts=parts, expand_kv=expand_kv)
    keys, values = gather_pages(k, v, table[0], context)
    states = [dense_attention(q.float(), keys[prefix:], values[prefix:], scale, causal=True)]
    if prefix:
        states.append(dense_attention(q.float(), keys[:prefix], values[:prefix], scale, causal=False))
    weights = torch.stack([lse for _, lse in states]).softmax(0)
    expected = sum(w.T[..., None] * state for w, (state, _) in zip(weights, states))
    assert_close(out, expected, torch.bfloat16)
