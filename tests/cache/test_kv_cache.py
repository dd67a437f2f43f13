"""KV tensors, copies of pages, and how many pages are planned."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rootlet.cache.kv_cache import KVCache, LayerKV, plan_num_pages
from rootlet.cache.kv_kind import KVKind, KVPlanner
from rootlet.cache.kv_spec import KVCacheSpec, KVGroup, Plane
from rootlet.cache.memory import free_host_memory
from rootlet.errors import ConfigError, ModelError

HALF = torch.bfloat16
NUM_PAGES = 9
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2, torch.float8_e4m3fn]
PAIRS = st.lists(
    st.tuples(st.integers(0, NUM_PAGES - 1), st.integers(0, NUM_PAGES - 1)),
    max_size=NUM_PAGES,
    unique_by=lambda pair: pair[1],
)


class Odd(KVKind):
    """A kind of which only the planes matter here."""

    name = "odd"

    def planner(self, pages: torch.Tensor, page_size: int) -> KVPlanner:
        raise AssertionError("no step is planned")


def uniform(dtype: torch.dtype = torch.float32, head_dim: int = 5) -> KVCacheSpec:
    return KVCacheSpec.uniform(
        num_layers=3, num_q_heads=6, num_kv_heads=2, head_dim=head_dim, dtype=dtype, page_size=4
    )


SPEC = uniform()


@st.composite
def specs(draw: st.DrawFn) -> KVCacheSpec:
    """Layers in up to three groups, of attention or of an odd kind, in pages of a few sizes."""
    owners = draw(st.lists(st.integers(0, 2), min_size=1, max_size=6))
    dtypes = st.sampled_from([*DTYPES, torch.int64])
    groups = []
    for owner in sorted(set(owners)):
        layers = tuple(layer for layer, own in enumerate(owners) if own == owner)
        if draw(st.booleans()):
            heads, dim = draw(st.integers(1, 2)), draw(st.integers(1, 8))
            groups.append(
                KVGroup.paged(
                    layers, num_q_heads=4, num_kv_heads=heads, head_dim=dim, dtype=draw(dtypes), window=9
                )
            )
        else:
            shapes = draw(st.lists(st.lists(st.integers(1, 4), max_size=2), min_size=1, max_size=3))
            planes = [Plane(f"plane {i}", tuple(shape), draw(dtypes)) for i, shape in enumerate(shapes)]
            groups.append(KVGroup(layers, tuple(planes), 4, Odd()))
    return KVCacheSpec(tuple(groups), draw(st.sampled_from([1, 3, 16])))


def planes(kv: KVCache) -> Iterator[torch.Tensor]:
    """The planes of all layers as bytes."""
    for layer in kv.layers:
        for plane in layer.planes.values():
            yield plane.view(torch.uint8)


def numbered(spec: KVCacheSpec) -> tuple[KVCache, list[torch.Tensor]]:
    """A cache whose every page holds its own bytes, and a copy of all planes."""
    kv = KVCache(spec, NUM_PAGES, "cpu")
    generator = torch.Generator().manual_seed(1)
    written = []
    for plane in planes(kv):
        written.append(torch.randint(0, 120, plane.shape, generator=generator, dtype=torch.uint8))
        plane.copy_(written[-1])
    return kv, written


def check_copies(spec: KVCacheSpec, pairs: list[tuple[int, int]]) -> None:
    """All read before they are written, in every plane."""
    kv, before = numbered(spec)
    kv.copy_pages([src for src, _ in pairs], [dst for _, dst in pairs])
    for plane, old in zip(planes(kv), before, strict=True):
        expected = old.clone()
        for src, dst in pairs:
            expected[dst] = old[src]
        assert torch.equal(plane, expected)


def test_shapes_and_sizes() -> None:
    kv = KVCache(SPEC, NUM_PAGES, "cpu")
    assert len(kv.layers) == 3
    for layer in kv.layers:
        assert layer.group == 0
        assert list(layer.planes) == ["k", "v"]
        for tensor in (layer.k, layer.v):
            assert tensor.shape == (NUM_PAGES, 4, 2, 5)
            assert tensor.dtype == torch.float32
            assert tensor.is_contiguous()
            assert tensor.data_ptr() % 4 == 0
            assert not tensor.any()
        assert layer.k is layer.planes["k"]
        assert layer.v is layer.planes["v"]
    assert SPEC.bytes_per_token == 2 * 3 * 2 * 5 * 4
    assert SPEC.bytes_per_page == 4 * SPEC.bytes_per_token
    assert kv.nbytes == NUM_PAGES * SPEC.bytes_per_page
    assert kv.nbytes == sum(tensor.nbytes for tensor in planes(kv))


def test_uniform_keys_and_values_are_one_tensor() -> None:
    """One call copies a page in all layers: keys of every layer, then values."""
    kv = KVCache(SPEC, NUM_PAGES, "cpu")
    [data] = kv.data
    assert data.shape == (6, NUM_PAGES, 20)
    assert data.dtype is torch.int64
    parts = [layer.k for layer in kv.layers] + [layer.v for layer in kv.layers]
    assert [part.data_ptr() for part in parts] == [plane.data_ptr() for plane in data]


@given(specs())
@settings(max_examples=80, deadline=None)
def test_every_plane_has_memory_of_its_own(spec: KVCacheSpec) -> None:
    kv, written = numbered(spec)
    assert all(torch.equal(plane, wrote) for plane, wrote in zip(planes(kv), written, strict=True))
    assert len(kv.layers) == spec.num_layers == sum(len(group.layers) for group in spec.groups)
    for index, group in enumerate(spec.groups):
        for layer in (kv.layers[i] for i in group.layers):
            assert layer.group == index
            assert list(layer.planes) == [plane.name for plane in group.planes]
            for plane in group.planes:
                tensor = layer.planes[plane.name]
                assert tensor.shape == (NUM_PAGES, spec.page_size, *plane.shape)
                assert tensor.dtype is plane.dtype
                assert tensor.is_contiguous()
    assert kv.nbytes == NUM_PAGES * spec.bytes_per_page == sum(tensor.nbytes for tensor in planes(kv))
    assert len(kv.data) == len({spec.page_size * plane.nbytes for g in spec.groups for plane in g.planes})


def test_a_layer_has_the_planes_of_its_group_alone() -> None:
    layer = LayerKV({"latent": torch.zeros(2, 4, 8)}, 1)
    assert layer.group == 1
    with pytest.raises(AttributeError):
        layer.k  # noqa: B018


@pytest.mark.parametrize("dtype", DTYPES)
def test_pages_are_copied_in_every_layer(dtype: torch.dtype) -> None:
    check_copies(uniform(dtype), [(3, 7), (5, 1)])


@given(PAIRS)
@settings(max_examples=80, deadline=None)
def test_copies_of_one_call_read_before_they_write(pairs: list[tuple[int, int]]) -> None:
    check_copies(SPEC, pairs)


@given(specs(), PAIRS)
@settings(max_examples=80, deadline=None)
def test_pages_are_copied_in_every_plane(spec: KVCacheSpec, pairs: list[tuple[int, int]]) -> None:
    check_copies(spec, pairs)


@pytest.mark.parametrize(("src", "dst"), [([1, 2], [3, 3]), ([1], [2, 3]), ([1, 2], [3])])
def test_contradictory_copies_are_refused(src: list[int], dst: list[int]) -> None:
    with pytest.raises(AssertionError, match="distinct target"):
        KVCache(SPEC, NUM_PAGES, "cpu").copy_pages(src, dst)


def test_memory_comes_from_where_it_is_told() -> None:
    asked = []

    def allocate(shape, dtype, device):
        asked.append(torch.zeros(shape, dtype=dtype, device=device))
        return asked[-1]

    kv = KVCache(SPEC, NUM_PAGES, "cpu", allocate)
    assert [data.data_ptr() for data in kv.data] == [tensor.data_ptr() for tensor in asked]
    assert sum(tensor.nbytes for tensor in asked) == NUM_PAGES * SPEC.bytes_per_page


def test_closing_lets_everything_go() -> None:
    kv = KVCache(SPEC, NUM_PAGES, "cpu")
    kv.close()
    kv.close()
    assert (kv.nbytes, kv.layers, kv.data) == (0, (), ())


# ---- specs


LATENT = Plane("latent", (8,), HALF)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KVGroup((0, 1), (), 4, Odd()), r"kind 'odd' of layers 0, 1 has planes \[\]"),
        (lambda: KVGroup((0,), (LATENT, LATENT), 4, Odd()), r"planes \['latent', 'latent'\].* of its own"),
        (lambda: KVGroup((0,), (Plane("c", (3, 0), HALF),), 4, Odd()), r"plane 'c' \[3, 0\]: sizes"),
        (lambda: KVGroup((0,), (LATENT,), 4), r"layers 0 keeps \{'latent'.* Without a kind"),
        (lambda: KVGroup((0,), (LATENT._replace(name="k"), LATENT._replace(name="v")), 4), "Without a kind"),
        (lambda: KVGroup.paged([0], num_q_heads=5, num_kv_heads=2, head_dim=4, dtype=HALF), "5 q heads"),
        (lambda: KVCacheSpec((), 4), r"layers \[\]: each needs"),
        (lambda: KVCacheSpec((KVGroup((), (LATENT,), 4, Odd()),), 4), r"layers \[\[\]\]"),
        (lambda: KVCacheSpec((KVGroup((1,), (LATENT,), 4, Odd()),), 4), r"layers \[\[1\]\].* from 0 on"),
        (lambda: KVCacheSpec((KVGroup((0,), (LATENT,), 4, Odd()),) * 2, 4), r"layers \[\[0\], \[0\]\]"),
    ],
)
def test_impossible_specs_are_refused(make, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        make()


# ---- planning


def plan(**options: object) -> int:
    return plan_num_pages(uniform(HALF, 8), "cpu", **options)  # 768 bytes a page


@given(specs(), st.integers(2, 1000), st.data())
@settings(max_examples=80, deadline=None)
def test_planned_pages_fit_in_the_bytes(spec: KVCacheSpec, pages: int, data: st.DataObject) -> None:
    rest = data.draw(st.integers(0, spec.bytes_per_page - 1))
    assert plan_num_pages(spec, "cpu", kv_cache_bytes=pages * spec.bytes_per_page + rest) == pages


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
