"""Shared prefixes read once: groups found on the host, the prefix kernel, and merging by log-sum-exp."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("supported_triton")

from rootlet.engine.steps.shared_prefixes import PrefixGroups
from rootlet.kernels.gpu.decode_attention import decode_attention
from rootlet.kernels.gpu.merge_states import Partials, empty_partials, merge_states, merge_states_reference
from rootlet.kernels.gpu.prefix_attention import num_prefix_splits, prefix_attention, rows_per_tile
from rootlet.kernels.gpu.prefix_groups import LAUNCH_TOKENS, MERGE_TOKENS, group_rows
from rootlet.kernels.scoring import Scoring

# Largest error relative to the largest result, against the plain path in fp32 on the same (rounded) inputs.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1.5e-2}


@pytest.fixture
def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def relative_error(actual, expected):
    return ((actual.float() - expected.float()).abs().max() / expected.float().abs().max()).item()


@pytest.mark.parametrize("starts", [False, True])
@pytest.mark.parametrize(("splits", "dim"), [(1, 32), (5, 80), (33, 64)])
def test_merge(device, splits, dim, starts):
    generator = torch.Generator().manual_seed(splits)
    parts = empty_partials(4, 3, splits + 1, dim, torch.device("cpu"))
    parts.out.normal_(generator=generator)
    parts.lse.normal_(0, 20, generator=generator)
    unseen = torch.rand(parts.lse.shape, generator=generator) < 0.4
    unseen[2] = True  # a padding row
    parts.lse[unseen] = float("-inf")
    parts.out[unseen] = float("nan")
    first, kv_starts = 0, None
    if starts:
        first, kv_starts = 1, torch.tensor([0, 64, 0, 0], dtype=torch.int32)
        parts.out[0, :, 0], parts.lse[0, :, 0] = float("nan"), float("nan")  # what nobody wrote
        parts.lse[0, :, 1] = 0.5
        parts.out[0, :, 1] = 1.0
    expected = merge_states_reference(
        parts, torch.empty(4, 3, dim), num_splits=splits, kv_starts=kv_starts, first_split=first
    )
    assert expected.isfinite().all()
    actual = merge_states(
        Partials(parts.out.to(device), parts.lse.to(device)),
        torch.full((4, 3, dim), float("nan"), device=device),
        num_splits=splits,
        kv_starts=None if kv_starts is None else kv_starts.to(device),
        first_split=first,
    )
    torch.testing.assert_close(actual.cpu(), expected, atol=1e-5, rtol=1e-5)
    assert (actual[2] == 0).all()


def shared_batch(heads, page_size, dtype, device):
    """Nine rows: two groups with a common prefix (5 and 3 rows) and one alone; caches NaN elsewhere."""
    num_q, num_kv, dim = heads
    shared = {0: 192 // page_size, 1: 128 // page_size}  # pages
    members = [0, 1, 0, None, 0, 1, 0, 0, 1]
    own = [1, 17, 40, 75, 64, 33, 2, 90, 5]
    generator = torch.Generator().manual_seed(page_size)
    ids = iter((torch.randperm(400, generator=generator) + 1).tolist())
    prefixes = {group: [next(ids) for _ in range(count)] for group, count in shared.items()}
    rows = [
        prefixes.get(group, []) + [next(ids) for _ in range(-(-n // page_size))]
        for group, n in zip(members, own)
    ]
    lens = [len(prefixes.get(group, [])) * page_size + n for group, n in zip(members, own)]
    k, v = (torch.randn(401, page_size, num_kv, dim, generator=generator).to(dtype) for _ in range(2))
    used = torch.zeros(401, page_size, dtype=torch.bool)
    table = torch.full((12, 1 + max(map(len, rows))), 2**31 - 1, dtype=torch.int32)
    slots = torch.randperm(12, generator=generator)[: len(rows)]
    for slot, pages, length in zip(slots.tolist(), rows, lens):
        table[slot, : len(pages)] = torch.tensor(pages, dtype=torch.int32)
        position = torch.arange(length)
        used[torch.tensor(pages)[position // page_size], position % page_size] = True
    k[~used] = v[~used] = float("nan")
    q = torch.randn(len(rows), num_q, dim, generator=generator).to(dtype)
    kv_lens = torch.tensor(lens, dtype=torch.int32)
    tensors = [tensor.to(device) for tensor in (q, k, v, table, slots.int(), kv_lens)]
    return rows, tensors


@pytest.mark.parametrize(
    ("heads", "page_size", "options", "prefix_splits", "own_splits", "dtype"),
    [
        ((8, 2, 64), 16, {}, 1, 1, torch.float32),
        ((8, 2, 64), 16, {"use_tma": False}, 3, 2, torch.bfloat16),
        ((6, 2, 32), 64, {"use_tma": True}, 2, 1, torch.bfloat16),
        ((7, 1, 80), 32, {"block_n": 32}, 2, 3, torch.float32),
        ((4, 1, 64), 64, {"use_tma": True, "block_n": 64}, 1, 1, torch.bfloat16),
    ],
    ids=str,
)
def test_shared_prefix_agrees_with_plain(device, heads, page_size, options, prefix_splits, own_splits, dtype):
    rows, (q, k, v, table, slots, kv_lens) = shared_batch(heads, page_size, dtype, device)
    num_q, _, dim = heads
    scoring = Scoring(dim**-0.5, soft_cap=30.0)
    # built by hand: such a small batch would not pay; 5 rows make two tiles of 4, and one tile is unused
    tile_rows = torch.tensor([[0, 2, 4, 6], [1, 5, 8, -1], [7, -1, -1, -1], [-1] * 4], dtype=torch.int32)
    tile_lens = torch.tensor([192, 128, 192, 0], dtype=torch.int32)
    starts = torch.tensor([192, 128, 192, 0, 192, 128, 192, 192, 128], dtype=torch.int32)
    expected = decode_attention(q.float(), k.float(), v.float(), table, slots, kv_lens, scoring, num_splits=1)
    partials = empty_partials(len(rows), num_q, prefix_splits + own_splits, dim, q.device)
    partials.out.fill_(float("nan"))
    partials.lse.fill_(float("nan"))
    starts = starts.to(device)
    prefix_attention(
        q, k, v, table, slots, tile_rows.to(device), tile_lens.to(device), scoring,
        partials=partials, num_splits=prefix_splits, **options,
    )  # fmt: skip
    actual = decode_attention(
        q, k, v, table, slots, kv_lens, scoring, num_splits=own_splits,
        kv_starts=starts, partials=partials, first_split=prefix_splits,
        out=torch.full_like(q, float("nan")),
    )  # fmt: skip
    assert relative_error(actual, expected) < TOLERANCE[dtype]


def test_rows_per_tile_and_splits():
    assert rows_per_tile(32, 8) == 32
    assert rows_per_tile(14, 2) == 18
    assert num_prefix_splits(32, 8) == 1
    assert num_prefix_splits(1, 8) == 32


def test_groups_of_whole_pages():
    rows = [[9, 8, 7, 20], [30, 31], [9, 8, 7, 21], [9, 8, 7], [30, 32], [40], [9, 8, 7, 22]]
    found = group_rows(rows, 1024, rows_per_tile=3, min_shared_tokens=1024)
    assert found is not None
    # row 3 ends in page 7, which it is writing: the group of four shares two pages, or three rows share three
    assert sorted(map(sorted, found.tile_rows.tolist())) == [[-1, 1, 4], [0, 2, 6]]
    assert sorted(found.tile_lens.tolist()) == [1024, 3 * 1024]
    assert found.kv_starts.tolist() == [3072, 1024, 3072, 0, 1024, 0, 3072]


def test_nothing_to_share():
    assert group_rows([], 64, 32) is None
    assert group_rows([[1, 2], [3, 4], [5]], 64, 32) is None
    assert group_rows([[1, 2], [1, 3]], 64, 32, min_shared_tokens=65) is None
    assert group_rows([[1], [1], [1]], 4096, 32) is None  # the last page never counts


def test_groups_are_those_of_the_rows_of_the_step():
    """Also where no two rows begin alike, or rows of one sequence stand one behind the other (drafts)."""
    found = PrefixGroups(8, 2, 64)
    positions = np.full(40, 30 * 64 + 5, dtype=np.int32)
    alone = [[row * 100 + page for page in range(32)] for row in range(40)]
    assert found.of(alone, positions) is None
    together = [[*range(9000, 9020), *table[20:]] for table in alone]
    for tables in (together, [*alone[:20], *together[20:]], [alone[0]] * 40, [*alone[:39], [1]], []):
        groups = found.of(tables, positions[: len(tables)])
        pages = [table[:31] for table in tables]
        expected = group_rows(pages, 64, rows_per_tile(8, 2))
        assert (groups is None) == (expected is None)
        if groups is not None:
            assert groups.kv_starts.tolist() == expected.kv_starts.tolist()
            assert groups.tile_rows.tolist() == expected.tile_rows.tolist()
        assert found.of(list(tables), positions[: len(tables)]) is groups  # the same rows


def test_sharing_must_pay():
    def found(shared_pages):
        rows = [[*range(100, 100 + shared_pages), row] for row in range(4)]
        return group_rows(rows, 16, rows_per_tile=32, min_shared_tokens=16)

    least = (LAUNCH_TOKENS + 4 * MERGE_TOKENS) // (3 * 16)
    assert found(least) is None
    assert found(least + 1) is not None


def test_branches_are_shared_deeper_where_that_saves_more():
    system, documents = [1, 2], [list(range(10 * d, 10 * d + 9)) for d in range(1, 5)]
    rows = [[*system, *documents[row % 4], 1000 + row] for row in range(32)]
    found = group_rows(rows, 64, rows_per_tile=8)
    assert found is not None
    assert found.tile_rows.shape == (4, 8)
    assert (found.tile_lens == 11 * 64).all()
    few = [*(([*system * 20, 50 + row, 100 + row]) for row in range(20))]
    few[0][:41] = few[1][:41] = [*system * 20, 99]
    found = group_rows(few, 64, rows_per_tile=32)  # two rows branch together, but all share nearly as much
    assert found is not None
    assert found.tile_lens.tolist() == [40 * 64]


@pytest.mark.parametrize("seed", range(6))
def test_groups_are_disjoint_and_really_shared(seed):
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(60):
        source = rows[random.integers(len(rows))] if rows and random.random() < 0.8 else []
        head = list(source[: random.integers(len(source) + 1)])
        rows.append(head + [int(x) for x in random.integers(10**6, 10**9, size=random.integers(1, 9))])
    found = group_rows(rows, 128, rows_per_tile=4, min_shared_tokens=128)
    assert found is not None
    seen = []
    for tile, length in zip(found.tile_rows.tolist(), found.tile_lens.tolist()):
        members = [row for row in tile if row >= 0]
        seen += members
        pages = length // 128
        assert tile[0] >= 0
        assert pages >= 1
        assert all(len(rows[row]) > pages and rows[row][:pages] == rows[tile[0]][:pages] for row in members)
        assert (found.kv_starts[members] == length).all()
    assert len(seen) == len(set(seen))
    assert sorted(seen) == np.flatnonzero(found.kv_starts).tolist()
