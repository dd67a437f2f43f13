"""KV tensors, copies of pages, and how many pages are planned."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rootlet.cache.kv_cache import KVCache, KVCacheSpec, plan_num_pages
from rootlet.cache.memory import free_host_memory
from rootlet.errors import ConfigError

SPEC = KVCacheSpec(num_layers=3, num_kv_heads=2, head_dim=5, dtype=torch.float32, page_size=4)
HALF = torch.bfloat16
NUM_PAGES = 9


def numbered(spec: KVCacheSpec) -> tuple[KVCache, torch.Tensor]:
    """A cache whose every page holds its own bytes, and a copy of all of them ``[2, L, pages, …]``."""
    kv = KVCache(spec, NUM_PAGES, "cpu")
    generator = torch.Generator().manual_seed(1)
    for tensor in (*kv.k, *kv.v):
        bits = torch.randint(0, 120, tensor.view(torch.uint8).shape, generator=generator, dtype=torch.uint8)
        tensor.view(torch.uint8).copy_(bits)
    return kv, contents(kv)


def contents(kv: KVCache) -> torch.Tensor:
    return torch.stack([torch.stack(kv.k), torch.stack(kv.v)]).view(torch.uint8)


def test_shapes_and_sizes() -> None:
    kv = KVCache(SPEC, NUM_PAGES, "cpu")
    assert len(kv.k) == len(kv.v) == 3
    for tensor in (*kv.k, *kv.v):
        assert tensor.shape == (NUM_PAGES, 4, 2, 5)
        assert tensor.dtype == torch.float32
        assert tensor.is_contiguous()
        assert tensor.data_ptr() % 4 == 0
        assert not tensor.any()
    assert SPEC.bytes_per_token == 2 * 3 * 2 * 5 * 4
    assert SPEC.bytes_per_page == 4 * SPEC.bytes_per_token
    assert kv.nbytes == NUM_PAGES * SPEC.bytes_per_page
    assert kv.nbytes == sum(tensor.nbytes for tensor in (*kv.k, *kv.v))


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2, torch.float8_e4m3fn]
)
def test_pages_are_copied_in_every_layer(dtype: torch.dtype) -> None:
    kv, before = numbered(replace(SPEC, dtype=dtype))
    kv.copy_pages([3, 5], [7, 1])
    expected = before.clone()
    expected[:, :, 7], expected[:, :, 1] = before[:, :, 3], before[:, :, 5]
    assert torch.equal(contents(kv), expected)


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=9, unique_by=lambda pair: pair[1]))
@settings(max_examples=80, deadline=None)
def test_copies_of_one_call_read_before_they_write(pairs: list[tuple[int, int]]) -> None:
    kv, before = numbered(SPEC)
    kv.copy_pages([src for src, _ in pairs], [dst for _, dst in pairs])
    expected = before.clone()
    for src, dst in pairs:
        expected[:, :, dst] = before[:, :, src]
    assert torch.equal(contents(kv), expected)


@pytest.mark.parametrize(("src", "dst"), [([1, 2], [3, 3]), ([1], [2, 3]), ([1, 2], [3])])
def test_contradictory_copies_are_refused(src: list[int], dst: list[int]) -> None:
    with pytest.raises(AssertionError, match="distinct target"):
        KVCache(SPEC, NUM_PAGES, "cpu").copy_pages(src, dst)


def test_closing_lets_everything_go() -> None:
    kv = KVCache(SPEC, NUM_PAGES, "cpu")
    kv.close()
    kv.close()
    assert (kv.nbytes, kv.k, kv.v) == (0, (), ())


# ---- planning


def plan(**options: object) -> int:
    return plan_num_pages(replace(SPEC, dtype=HALF, head_dim=8), "cpu", **options)  # 768 bytes a page


@pytest.mark.parametrize(
    ("options", "pages"),
    [
        ({"kv_cache_bytes": 768 * 2}, 2),
        ({"kv_cache_bytes": 768 * 10 + 767}, 10),
        ({"max_total_tokens": 1}, 2),
        ({"max_total_tokens": 4}, 2),
        ({"max_total_tokens": 5}, 3),
        ({"max_total_tokens": 100, "kv_cache_bytes": 768 * 10}, 10),
        ({"max_total_tokens": 20, "kv_cache_bytes": 768 * 10}, 6),
        ({"kv_cache_bytes": 768 * 10, "cap_tokens": 16}, 5),
        ({"max_total_tokens": 100, "mem_fraction": 0.5, "cap_tokens": 16}, 5),
        ({"mem_fraction": 0.5, "cap_tokens": 400}, 101),
    ],
)
def test_the_smallest_limit_counts(options: dict[str, object], pages: int) -> None:
    assert plan(**options) == pages


def test_a_fraction_is_of_the_memory_free_now() -> None:
    most = free_host_memory() // 768
    assert 0 < plan(mem_fraction=0.01) < 0.1 * most


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_total_tokens": 0}, "max_total_tokens must be at least 1, got 0"),
        ({"kv_cache_bytes": -5}, "kv_cache_bytes must be at least 1, got -5"),
        ({"mem_fraction": 0.0}, "mem_fraction must be above 0 and at most 1, got 0.0"),
        ({"mem_fraction": 1.5}, "mem_fraction must be above 0 and at most 1, got 1.5"),
        ({"mem_fraction": float("nan")}, "mem_fraction must be above 0"),
        ({}, "Set max_total_tokens"),
        ({"cap_tokens": 16}, "Set max_total_tokens"),
        ({"kv_cache_bytes": 768 * 2 - 1}, "kv_cache_bytes=1535 gives 1 pages of 768 bytes"),
        ({"mem_fraction": 1e-12}, "mem_fraction=1e-12 of the .* gives 0 pages"),
        ({"kv_cache_bytes": 1 << 60}, "kv_cache_bytes=1152921504606846976 needs .* are free now"),
        ({"max_total_tokens": 1 << 50}, "max_total_tokens=1125899906842624 needs .* are free now"),
    ],
)
def test_impossible_sizes_are_refused_with_a_reason(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(**options)


def test_cutting_what_the_user_asked_for_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "rootlet.cache"):
        plan(max_total_tokens=100, kv_cache_bytes=768 * 1000)
        plan(max_total_tokens=100, cap_tokens=16, kv_cache_bytes=768 * 1000)
        assert not caplog.messages
        plan(max_total_tokens=100, kv_cache_bytes=768 * 10)
    assert caplog.messages == ["max_total_tokens=100 does not fit: 36 tokens by kv_cache_bytes=7680."]
