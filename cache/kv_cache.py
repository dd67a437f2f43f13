"""The tensors that hold keys and values, page by page, and how many pages fit."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..errors import ConfigError
from .memory import free_memory, zeros

_log = logging.getLogger("rootlet.cache")


@dataclass(frozen=True)
class KVCacheSpec:
    """Shape of one model's KV cache: ``head_dim`` of keys and of values alike, ``page_size`` in tokens."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype
    page_size: int

    @property
    def bytes_per_token(self) -> int:
        """Bytes of keys and values of one token over all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * self.dtype.itemsize

    @property
    def bytes_per_page(self) -> int:
        """Bytes of keys and values of one page over all layers."""
        return self.page_size * self.bytes_per_token


class LayerKV(NamedTuple):
    """Where one layer keeps keys and values, each ``[num_pages, page_size, Hkv, D]``.

    ``group``: layers of one group share page tables, and with them a step's places and attention plan.
    """

    k: torch.Tensor
    v: torch.Tensor
    group: int = 0


class KVCache:
    """Keys and values of all layers: ``layers[i].k`` and ``.v`` are ``[num_pages, page_size, Hkv, D]``.

    All are contiguous views of one tensor ``[2, num_layers, num_pages, page_size, Hkv, D]``, so that one call
    copies a page in every layer. ``num_pages`` includes page 0, the padding page.

    Everything starts as zeros, not as whatever the memory held: attention gives masked positions the weight
    zero, and zero times a stray NaN or infinity is NaN. (What sequences write later is finite unless the
    model itself overflowed, and kernels are expected not to read beyond a row's length at all.)
    """

    def __init__(self, spec: KVCacheSpec, num_pages: int, device: torch.device | str) -> None:
        self.spec = spec
        self.num_pages = num_pages
        self.device = torch.device(device)
        shape = (2, spec.num_layers, num_pages, spec.page_size, spec.num_kv_heads, spec.head_dim)
        self._data: torch.Tensor | None = zeros(shape, spec.dtype, self.device)
        # the same bytes for copy_pages: torch's indexed copies know no float8
        is_float8 = spec.dtype.itemsize == 1
        self._raw: torch.Tensor | None = self._data.view(torch.uint8) if is_float8 else self._data
        self.k: tuple[torch.Tensor, ...] = tuple(self._data[0])
        self.v: tuple[torch.Tensor, ...] = tuple(self._data[1])
        self.layers: tuple[LayerKV, ...] = tuple(map(LayerKV, self.k, self.v))

    @property
    def data(self) -> torch.Tensor | None:
        """All of it, ``[2, num_layers, num_pages, page_size, Hkv, D]``; None after :meth:`close`."""
        return self._data

    @property
    def nbytes(self) -> int:
        """Bytes held now; 0 after :meth:`close`."""
        return 0 if self._data is None else self._data.nbytes

    def copy_pages(self, src: Sequence[int], dst: Sequence[int]) -> None:
        """Copy page ``src[i]`` to page ``dst[i]`` in every layer, for all i as if at once.

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
        assert self._raw is not None  # no step runs after close()
        pairs = torch.tensor([list(src), list(dst)], dtype=torch.int64, device="cpu")
        if self.device.type == "cuda":
            pairs = pairs.pin_memory().to(self.device, non_blocking=True)
        self._raw.index_copy_(2, pairs[1], self._raw.index_select(2, pairs[0]))

    def close(self) -> None:
        """Let the memory go (views that others still hold keep it alive). Idempotent."""
        self._data = self._raw = None
        self.k = self.v = self.layers = ()


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
