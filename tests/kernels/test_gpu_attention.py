"""The Triton decode and prefill kernels against the torch reference: on a GPU, else in the interpreter."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

pytest.importorskip("supported_triton")

from rootlet.kernels.attention import paged_attention_reference
from rootlet.kernels.gpu.decode_attention import decode_attention, num_decode_splits
from rootlet.kernels.gpu.prefill_attention import (
    PrefillConfig,
    prefill_attention,
    prefill_config,
    prefill_tiles,
    tile_tokens,
)
from rootlet.kernels.scoring import Scoring

# Largest error relative to the largest result: order of summation, and bf16 rounding of weights and results.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 3e-3, torch.bfloat16: 1.5e-2}


@pytest.fixture
def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


class Paged:
    """A case on the device, with a slot table, and NaN wherever no row's token lies."""

    def __init__(self, case, device):
        rows = len(case.rows)
        self.case, self.page_size = case, case.plan.page_size
        used = torch.zeros(case.k.shape[:2], dtype=torch.bool)
        for row, (_, context) in enumerate(case.rows):
            position = torch.arange(context)
            page = case.plan.page_table[row, position // self.page_size].long()
            used[page, position % self.page_size] = True
        case.k[~used] = float("nan")
        case.v[~used] = float("nan")
        slots = torch.randperm(rows + 3, generator=torch.Generator().manual_seed(rows))[:rows]
        pages = torch.full((rows + 3, case.plan.page_table.shape[1]), 2**31 - 1, dtype=torch.int32)
        pages[slots] = case.plan.page_table
        self.pages, self.slots = pages.to(device), slots.int().to(device)
        self.q, self.k, self.v = case.q.to(device), case.k.to(device), case.v.to(device)
        self.q_starts, self.kv_lens = case.plan.q_starts.to(device), case.plan.kv_lens.to(device)
        self.scale = case.q.shape[2] ** -0.5

    def reference(self, window=None, soft_cap=None):
        case = self.case
        return paged_attention_reference(
            case.q, case.k, case.v, case.plan, Scoring(self.scale, window, soft_cap)
        )

    def poisoned(self):
        return torch.full_like(self.q, float("nan"))

    def decode(self, num_splits, window=None, soft_cap=None, **options):
        return decode_attention(
            self.q, self.k, self.v, self.pages, self.slots, self.kv_lens,
            Scoring(self.scale, window, soft_cap), num_splits=num_splits, out=self.poisoned(), **options,
        )  # fmt: skip

    def prefill(self, config=None, window=None, soft_cap=None, **options):
        if config is None:
            config = prefill_config(self.q.shape[2], self.page_size, self.q.dtype)
        counts = np.array([count for count, _ in self.case.rows])
        kv_lens = np.array([context for _, context in self.case.rows])
        tokens = tile_tokens(config.block_m, self.q.shape[1], self.k.shape[2])
        tiles = torch.from_numpy(prefill_tiles(counts, tokens, kv_lens)).to(self.q.device)
        return prefill_attention(
            self.q, self.k, self.v, self.pages, self.slots, self.q_starts, self.kv_lens, tiles,
            Scoring(self.scale, window, soft_cap), out=self.poisoned(), config=config, **options,
        )  # fmt: skip


def assert_close(actual, expected, dtype):
    assert actual.dtype == dtype
    actual, expected = actual.float().cpu(), expected.float()
    error = (actual - expected).abs().max() / expected.abs().max()
    assert error < TOLERANCE[dtype], f"relative error {error:.2e}"


DECODE = [(1, 1), (1, 64), (1, 65), (1, 211)]


@pytest.mark.parametrize(
    ("heads", "page_size", "num_splits", "dtype"),
    [
        ((8, 2, 64), 16, 1, torch.float32),
        ((8, 2, 64), 16, 3, torch.bfloat16),
        ((4, 1, 128), 64, 1, torch.bfloat16),
        ((4, 1, 128), 64, 16, torch.float32),
        ((14, 2, 32), 128, 2, torch.float32),
        ((14, 2, 32), 128, 1, torch.bfloat16),
        ((3, 3, 80), 1, 1, torch.float32),
        ((3, 3, 80), 1, 2, torch.bfloat16),
        ((5, 1, 96), 32, 4, torch.float32),
    ],
    ids=str,
)
def test_decode(paged_case, device, heads, page_size, num_splits, dtype):
    paged = Paged(paged_case(DECODE, page_size=page_size, heads=heads, dtype=dtype), device)
    assert_close(paged.decode(num_splits), paged.reference(), dtype)


@pytest.mark.parametrize("num_splits", [1, 3])
def test_nan_of_a_row_is_not_lost(paged_case, device, num_splits):
    """Parts of a context are merged by weights, and NaN must not pass for a part without keys."""
    paged = Paged(paged_case(DECODE, page_size=16, heads=(8, 2, 64), dtype=torch.float32), device)
    row = 2
    page = paged.case.plan.page_table[row, 1]
    paged.k[page, 3, 0] = float("nan")  # position 19, the first kv head
    found = torch.isnan(paged.decode(num_splits))
    expected = torch.zeros_like(found)
    expected[row, :4] = True
    assert torch.equal(found, expected)


@pytest.mark.parametrize(("window", "soft_cap"), [(1, None), (70, None), (64, 5.0), (1000, 20.0)])
@pytest.mark.parametrize(("page_size", "num_splits"), [(8, 1), (128, 3)])
def test_decode_window_and_soft_cap(paged_case, device, page_size, num_splits, window, soft_cap):
    paged = Paged(paged_case(DECODE, page_size=page_size, heads=(4, 2, 32)), device)
    expected = paged.reference(window, soft_cap)
    if window < 211:  # what slid out of the window may belong to somebody else by now
        pages = paged.case.plan.page_table[3]
        for position in range(211 - window):
            paged.k[pages[position // page_size], position % page_size] = float("nan")
            paged.v[pages[position // page_size], position % page_size] = float("nan")
    assert_close(
        paged.decode(num_splits, window=window, soft_cap=soft_cap, block_n=32), expected, torch.float32
    )


@pytest.mark.parametrize("num_splits", [1, 5])
def test_decode_padding_rows_are_zeros(paged_case, device, num_splits):
    paged = Paged(paged_case([(1, 40), (1, 9), (1, 70)], page_size=16, heads=(4, 2, 32)), device)
    expected = paged.reference()
    paged.kv_lens[1] = 0
    expected[1] = 0
    assert_close(paged.decode(num_splits), expected, torch.float32)


def test_decode_head_dim_256_strided_fp16(paged_case, device):
    paged = Paged(paged_case(DECODE[:3], page_size=16, heads=(6, 2, 256), dtype=torch.float16), device)
    wide = torch.full((len(paged.q), 9, 256), float("nan"), dtype=torch.float16, device=device)
    wide[:, 2:8] = paged.q
    paged.q = wide[:, 2:8]
    assert_close(paged.decode(2), paged.reference(), torch.float16)


def test_num_decode_splits():
    for rows, heads in itertools.product([1, 2, 7, 16, 33, 256], [1, 2, 8]):
        splits = num_decode_splits(rows, heads)
        assert splits & (splits - 1) == 0
        assert 1 <= splits <= 64
        assert splits == 1 or rows * heads * splits <= 2 * 132
    assert num_decode_splits(1, 8) == 32
    assert num_decode_splits(256, 8) == 1


MIXED = [(1, 1), (1, 130), (7, 7), (35, 70), (18, 83), (0, 50)]
SMALL = PrefillConfig(block_m=32, block_n=32, num_warps=4, num_stages=2)


@pytest.mark.parametrize(
    ("heads", "page_size", "dtype"),
    [
        ((8, 2, 64), 16, torch.float32),
        ((8, 2, 64), 16, torch.bfloat16),
        ((4, 4, 128), 64, torch.bfloat16),
        ((7, 1, 32), 128, torch.float32),
        ((6, 2, 80), 1, torch.bfloat16),
        ((20, 1, 96), 32, torch.bfloat16),  # more q heads than are packed into a tile
    ],
    ids=str,
)
def test_prefill(paged_case, device, heads, page_size, dtype):
    paged = Paged(paged_case(MIXED, page_size=page_size, heads=heads, dtype=dtype), device)
    assert_close(paged.prefill(), paged.reference(), dtype)


@pytest.mark.parametrize(("window", "soft_cap"), [(1, None), (40, None), (64, 5.0), (1000, 20.0)])
@pytest.mark.parametrize("page_size", [8, 128])
def test_prefill_window_and_soft_cap(paged_case, device, page_size, window, soft_cap):
    paged = Paged(paged_case(MIXED, page_size=page_size, heads=(2, 1, 32)), device)
    expected = paged.reference(window, soft_cap)
    assert_close(paged.prefill(SMALL, window=window, soft_cap=soft_cap), expected, torch.float32)


@pytest.mark.parametrize("block_n", [32, 64])
def test_prefill_tma(paged_case, device, block_n):
    """Descriptors are used where a tile of keys lies in one page, and read nothing beyond a row's tokens."""
    rows = [(40, 230), (66, 66)]
    paged = Paged(paged_case(rows, page_size=64, heads=(4, 2, 64), dtype=torch.bfloat16), device)
    config = PrefillConfig(64, block_n, num_warps=4, num_stages=2, use_tma=True)
    assert_close(paged.prefill(config), paged.reference(), torch.bfloat16)


def test_prefill_strided_queries(paged_case, device):
    paged = Paged(paged_case([(9, 30), (3, 3)], page_size=16, heads=(4, 2, 32)), device)
    wide = torch.full((len(paged.q), 7, 32), float("nan"), device=device)
    wide[:, 1:5] = paged.q
    paged.q = wide[:, 1:5]
    assert_close(paged.prefill(), paged.reference(), torch.float32)


def test_prefill_tiles_cover_each_token_once_longest_context_first():
    counts, kv_lens = np.array([5, 0, 64, 1, 33]), np.array([500, 9, 64, 2000, 50])
    tiles = prefill_tiles(counts, 16, kv_lens)
    assert tiles.dtype == np.int32
    covered = [(row, first + i) for row, first in tiles.T for i in range(min(16, counts[row] - first))]
    assert sorted(covered) == [(row, i) for row, count in enumerate(counts) for i in range(count)]
    starts = (kv_lens - counts)[tiles[0]] + tiles[1]
    assert (np.diff(starts) <= 0).all()
    assert prefill_tiles(np.array([], dtype=int), 16).shape == (2, 0)


def test_empty_batches(paged_case, device):
    paged = Paged(paged_case([(0, 3)], page_size=4, heads=(4, 2, 32)), device)
    assert paged.prefill().shape == (0, 4, 32)
    empty = torch.zeros(0, dtype=torch.int32, device=device)
    out = decode_attention(paged.q, paged.k, paged.v, paged.pages, empty, empty, Scoring(1.0), num_splits=2)
    assert out.shape == (0, 4, 32)


def test_wrong_arguments_are_refused(paged_case, device):
    paged = Paged(paged_case([(1, 3)], page_size=4, heads=(4, 2, 32)), device)
    with pytest.raises(ValueError, match="first_split"):
        paged.decode(1, first_split=1)
    with pytest.raises(ValueError, match="num_splits"):
        paged.decode(0)
    with pytest.raises(ValueError, match="window"):
        paged.prefill(window=0)
    with pytest.raises(ValueError, match="window"):
        paged.decode(1, window=0)
    paged.slots = paged.slots.long()
    with pytest.raises(ValueError, match="int32"):
        paged.decode(1)
    paged.q = paged.q[:, :3]
    with pytest.raises(ValueError, match="multiple of Hkv"):
        paged.prefill(SMALL)


UNKNOWN = [{"sinks": torch.zeros(4)}, {"slopes": (0.5,) * 4}, {"causal": False}]


@pytest.mark.parametrize("field", UNKNOWN, ids=lambda field: next(iter(field)))
def test_what_a_kernel_does_not_know_is_refused_by_name(paged_case, device, field):
    paged = Paged(paged_case([(1, 3)], page_size=4, heads=(4, 2, 32)), device)
    scoring, [name] = Scoring(paged.scale, **field), field
    tiles = torch.zeros(2, 1, dtype=torch.int32, device=device)
    rows = paged.q, paged.k, paged.v, paged.pages, paged.slots
    for attend in (
        lambda: decode_attention(*rows, paged.kv_lens, scoring, num_splits=1),
        lambda: prefill_attention(*rows, paged.q_starts, paged.kv_lens, tiles, scoring),
    ):
        with pytest.raises(ValueError, match=f"does not know {name}. .*: soft_cap, window"):
            attend()
