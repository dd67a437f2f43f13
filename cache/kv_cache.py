"""The memory of what a model keeps of every token, page by page, and how many pages fit."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence

import torch

from ..errors import ConfigError
from .kv_spec import KVCacheSpec
from .memory import Allocate, free_memory, zeros

_log = logging.getLogger("rootlet.cache")


class LayerKV:
    """Where one layer keeps what it keeps: its planes by name, each ``[num_pages, page_size, *shape]``.

    ``k`` and ``v`` are the planes of these names; a layer without them has no such attributes. ``group``:
    the layer's KV group, by which it finds its places and its attention plan in a step.
    """

    __slots__ = ("group", "k", "planes", "v")

    k: torch.Tensor
    v: torch.Tensor

    def __init__(self, planes: Mapping[str, torch.Tensor], group: int = 0) -> None:
        self.planes = planes
        self.group = group
        if "k" in planes:
            self.k = planes["k"]
        if "v" in planes:
            self.v = planes["v"]


class KVCache:
    """All planes of all layers: ``layers[i].planes[name]`` is ``[num_pages, page_size, *shape]``, contiguous.

    Planes with pages of the same size lie in one tensor, so that one call copies a page in all of them;
    uniform keys and values are one. ``num_pages`` includes page 0, the padding page. A page is the same page
    in every plane; groups whose sequences need pages for different times would get page tables of their own
    here, which layers would not notice: they are told their places step by step.

    Everything starts as zeros, not as whatever the memory held: attention gives masked positions the weight
    zero, and zero times a stray NaN or infinity is NaN. (What sequences write later is finite unless the
    model itself overflowed, and kernels are expected not to read beyond a row's length at all.)

    ``allocate``: where the memory comes from.
    """

    def __init__(
        self, spec: KVCacheSpec, num_pages: int, device: torch.device | str, allocate: Allocate = zeros
    ) -> None:
        self.spec = spec
        self.num_pages = num_pages
        self.device = torch.device(device)
        counts: Counter[int] = Counter()  # planes of layers, by bytes per page
        for group in spec.groups:
            for plane in group.planes:
                counts[spec.page_size * plane.nbytes] += len(group.layers)
        self._data = {
            size: allocate(*_pages(count, num_pages, size), self.device) for size, count in counts.items()
        }
        self.layers: tuple[LayerKV, ...] = self._lay_out()

    def _lay_out(self) -> tuple[LayerKV, ...]:
        """Give every plane of every layer its part of the memory, plane by plane."""
        spec = self.spec
        free = {size: iter(pages) for size, pages in self._data.items()}
        layers: dict[int, LayerKV] = {}
        for index, group in enumerate(spec.groups):
            planes: dict[int, dict[str, torch.Tensor]] = {layer: {} for layer in group.layers}
            for plane in group.planes:
                shape = (self.num_pages, spec.page_size, *plane.shape)
                for layer in group.layers:
                    part = next(free[spec.page_size * plane.nbytes])
                    planes[layer][plane.name] = part.view(plane.dtype).view(shape)
            layers |= {layer: LayerKV(own, index) for layer, own in planes.items()}
        return tuple(layers[layer] for layer in range(spec.num_layers))

    @property
    def data(self) -> tuple[torch.Tensor, ...]:
        """All of it, ``[planes, num_pages, words]`` integers by size of a page; empty after :meth:`close`."""
        return tuple(self._data.values())

    @property
    def nbytes(self) -> int:
        """Bytes held now; 0 after :meth:`close`."""
        return sum(pages.nbytes for pages in self._data.values())

    def copy_pages(self, src: Sequence[int], dst: Sequence[int]) -> None:
        """Copy page ``src[i]`` to page ``dst[i]`` in every plane, for all i as if at once.

        Everything is read before anything is written, so a page may be the target of one copy and the source
        of another. ``dst`` may not name a page twice (AssertionError). One small host-to-device copy, no
        wait.
        """
        if len(src) != len(dst) or len(set(dst)) != len(dst):
            raise AssertionError(
                f"Pages {list(src)} cannot be copied to {list(dst)}: one distinct target each."
            )
        if not src:
            return
        pairs = torch.tensor([list(src), list(dst)], dtype=torch.int64, device="cpu")
        if self.device.type == "cuda":
            pairs = pairs.pin_memory().to(self.device, non_blocking=True)
        for pages in self._data.values():
            pages.index_copy_(1, pairs[1], pages.index_select(1, pairs[0]))

    def close(self) -> None:
        """Let the memory go (views that others still hold keep it alive). Idempotent."""
        self._data = {}
        self.layers = ()


def _pages(count: int, num_pages: int, size: int) -> tuple[tuple[int, ...], torch.dtype]:
    """Pages of ``size`` bytes for so many planes: ``[count, num_pages, words]``, and the widest integers.

    Integers, for torch's indexed copies know no float8.
    """
    words = (torch.int64, torch.int32, torch.int16, torch.uint8)
    word = next(dtype for dtype in words if size % dtype.itemsize == 0)
    return (count, num_pages, size // word.itemsize), word


def plan_num_pages(
    spec: KVCacheSpec,
    device: torch.device | str,
    *,
    max_total_tokens: int | None = None,
    kv_cache_bytes: int | None = None,
    mem_fraction: float | None = None,
    cap_tokens: int | None = None,
    reserve: int = 0,
) -> int:
    """Number of pages, the padding page included, to give :class:`KVCache` and the page pool.

    The budget in bytes is ``kv_cache_bytes`` if given, else ``mem_fraction`` (0 < f <= 1) of the memory
    *free now* on ``device``, never of its total. ``max_total_tokens`` (the user's) and ``cap_tokens`` (more
    than the engine could ever use) are upper limits on top, rounded up to whole pages beside the padding
    page; the smallest of all counts. ``max_total_tokens`` alone is enough. ``reserve`` bytes of the free
    memory are left for what a step needs.

    Raises ConfigError if a value is impossible, if there is nothing to derive a size from, if not one page
    fits beside the padding page, or if more memory was asked for than is free.
    """
    for name, value in (("max_total_tokens", max_total_tokens), ("kv_cache_bytes", kv_cache_bytes)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value!r}; None sizes the KV cache by itself.")
    if mem_fraction is not None and not 0 < mem_fraction <= 1:
        raise ConfigError(f"mem_fraction must be above 0 and at most 1, got {mem_fraction!r}.")
    free = free_memory(torch.device(device))
    if free is not None:
        free = max(0, free - reserve)
    limits = [1 - (-tokens // spec.page_size) for tokens in (max_total_tokens, cap_tokens) if tokens]
    if kv_cache_bytes is not None:
        limits.append(kv_cache_bytes // spec.bytes_per_page)
        source = f"kv_cache_bytes={kv_cache_bytes}"
    elif mem_fraction is not None and free is not None:
        limits.append(int(free * mem_fraction) // spec.bytes_per_page)
        source = f"mem_fraction={mem_fraction} of the {free} bytes free on '{device}'"
    elif max_total_tokens is not None:
        source = f"max_total_tokens={max_total_tokens}"
    else:
        raise ConfigError(
            f"The KV cache cannot be sized: no fraction of the memory free on '{device}' was given, or the "
            "system does not tell how much is free. Set max_total_tokens (in tokens) or kv_cache_bytes."
        )
    num_pages = _checked(min(limits), spec, source, free)
    if max_total_tokens is not None and num_pages < limits[0] and num_pages == limits[-1]:
        tokens = (num_pages - 1) * spec.page_size
        _log.warning("max_total_tokens=%d does not fit: %d tokens by %s.", max_total_tokens, tokens, source)
    return num_pages


def _checked(num_pages: int, spec: KVCacheSpec, source: str, free: int | None) -> int:
    """``num_pages`` if that many are of use and fit into the free memory, else ConfigError."""
    size = spec.bytes_per_page
    if num_pages < 2:
        raise ConfigError(
            f"The KV cache is too small: {source} gives {num_pages} pages of {size} bytes ({spec.page_size} "
            f"tokens at {spec.bytes_per_token} bytes), but at least 2 are needed, one of them for padding. "
            "Free some memory, allow more of it, or choose a smaller page_size or model."
        )
    if free is not None and num_pages * size > free:
        fitting = max(0, free // size - 1) * spec.page_size
        raise ConfigError(
            f"The KV cache does not fit: {source} needs {num_pages * size} bytes but {free} are free now. "
            f"Ask for at most {fitting} tokens, or free memory."
        )
    return num_pages
