"""Causal attention over a paged KV cache, for prefill chunks and decode rows in one call."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Final, Protocol

import numpy as np
import torch

from ..errors import ModelError
from .native import element_type, load
from .scoring import Scoring, check_scoring

_C = load()

CAN: Final = frozenset({"window", "soft_cap", "sinks", "slopes", "causal"})
"""Fields of a :class:`Scoring` that :func:`paged_attention` knows, by the C kernel or the reference."""

_C_CAN: Final = frozenset({"window", "soft_cap"})


class AttentionPlan(Protocol):
    """What a step's layers attend to: planned once per step, run once per layer."""

    def attend(
        self, q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, scoring: Scoring
    ) -> torch.Tensor:
        """Attention ``[T, Hq, D]`` of one layer's q ``[T, Hq, D]``, as :func:`paged_attention` defines it."""


@dataclass(frozen=True)
class PagedAttentionPlan:
    """Which q tokens attend to which cached tokens in one step; the same for every layer.

    Row r owns the q tokens ``q_starts[r]:q_starts[r+1]``. They are the last tokens of a context of
    ``kv_lens[r]`` tokens whose K and V already are in the cache, at the pages ``page_table[r, :]``
    in order; entries after the last page in use are ignored.
    """

    page_table: torch.Tensor  # [R, P] int32
    q_starts: torch.Tensor  # [R + 1] int32, starts with 0, never decreases
    kv_lens: torch.Tensor  # [R] int32, at least the number of the row's q tokens
    page_size: int  # tokens in a page
    max_q: int  # largest number of q tokens of a row
    max_kv: int  # largest of kv_lens

    @classmethod
    def of(
        cls,
        pages: torch.Tensor,
        slots: np.ndarray,
        q_starts: np.ndarray,
        kv_lens: np.ndarray,
        *,
        page_size: int,
        max_q: int,
    ) -> PagedAttentionPlan:
        """R rows, at least one, whose pages stand in the rows ``slots`` of ``pages`` [num_slots, max_pages].

        The arrays are int32, as the fields of these names; the plan is on the device of ``pages``.
        """
        device, max_kv = pages.device, int(kv_lens.max())
        rows = torch.from_numpy(slots).to(device, torch.int64)
        return cls(
            page_table=pages[rows, : -(-max_kv // page_size)].contiguous(),
            q_starts=torch.from_numpy(q_starts).to(device, torch.int32),
            kv_lens=torch.from_numpy(kv_lens).to(device, torch.int32),
            page_size=page_size,
            max_q=max_q,
            max_kv=max_kv,
        )

    def attend(
        self, q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, scoring: Scoring
    ) -> torch.Tensor:
        """:func:`paged_attention` with this plan."""
        return paged_attention(q, k_cache, v_cache, self, scoring)

    @cached_property
    def native_arguments(self) -> tuple[int, ...]:
        """What the C kernel takes of the plan: addresses and sizes, read once for all layers.

        The tensors are read anew at every call, so their contents may change in place. Raises
        ValueError for a wrong dtype, shape or memory layout.
        """
        table, q_starts, kv_lens = self.page_table, self.q_starts, self.kv_lens
        tensors = (table, q_starts, kv_lens)
        if any(t.dtype is not torch.int32 or not t.is_cpu or not t.is_contiguous() for t in tensors):
            found = ", ".join(f"{t.dtype} on {t.device}, strides {t.stride()}" for t in tensors)
            raise ValueError(
                f"page_table, q_starts and kv_lens must be contiguous int32 on the CPU, got {found}."
            )
        rows = kv_lens.numel()
        if table.dim() != 2 or table.shape[0] != rows or q_starts.numel() != rows + 1 or self.page_size < 1:
            shapes = ", ".join(str(list(tensor.shape)) for tensor in tensors)
            raise ValueError(
                f"page_table, q_starts and kv_lens are {shapes}; they must be [R, P], [R + 1], [R]"
                f" (and page_size, {self.page_size}, at least 1)."
            )
        addresses = table.data_ptr(), q_starts.data_ptr(), kv_lens.data_ptr()
        return (*addresses, rows, table.shape[1], self.page_size)


def paged_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    plan: PagedAttentionPlan,
    scoring: Scoring,
) -> torch.Tensor:
    """Return ``softmax(scale * q k^T) v`` ``[T, Hq, D]`` for q ``[T, Hq, D]``, causal within each row.

    The caches are ``[num_pages, page_size, Hkv, D]`` of q's dtype; Hq is a multiple of Hkv, and
    query head h reads kv head ``h // (Hq / Hkv)`` (grouped-query attention, arXiv:2305.13245).
    A window of w lets position p see the keys in ``(p - w, p]``. A soft_cap of c replaces a score s
    by ``c * tanh(s / c)`` before masking (Gemma 2, arXiv:2408.00118). A slope of m takes ``m * (p - k)``
    off the score of key k (ALiBi, arXiv:2108.12409). A sink is one more score in the sum of weights,
    without a value. If not causal, position p sees all keys, with a window those in ``(p - w, p + w)``.
    fp32 inside.

    On the CPU with the C kernels, a token's result is bitwise the same in any batch, chunk, page
    size and number of threads. Raises ValueError for shapes or a plan that do not fit together,
    IndexError for a page that does not exist.
    """
    tokens, num_q_heads, head_dim = q.shape
    num_pages, _, num_kv_heads, _ = k_cache.shape
    _check(q, k_cache, v_cache, plan, scoring)
    native = _C
    kind = element_type(q, k_cache, v_cache)
    if native is None or kind is None or (scoring.asks and not scoring.asks <= _C_CAN):
        return paged_attention_reference(q, k_cache, v_cache, plan, scoring)
    q = q.contiguous()
    out = torch.empty_like(q)
    native.paged_attention(
        out.data_ptr(),
        q.data_ptr(),
        k_cache.data_ptr(),
        v_cache.data_ptr(),
        *plan.native_arguments,
        num_pages,
        tokens,
        num_q_heads,
        num_kv_heads,
        head_dim,
        scoring.scale,
        scoring.window or 0,
        scoring.soft_cap or 0.0,
        kind,
    )
    return out


def paged_attention_reference(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    plan: PagedAttentionPlan,
    scoring: Scoring,
) -> torch.Tensor:
    """Compute :func:`paged_attention` in torch, one row at a time."""
    out = torch.empty_like(q)
    q_starts, kv_lens = plan.q_starts.tolist(), plan.kv_lens.tolist()
    room = plan.page_table.shape[1] * plan.page_size
    if q_starts[0] != 0 or q_starts[-1] != len(q):
        raise ValueError(
            f"q_starts runs from {q_starts[0]} to {q_starts[-1]}, but there are {len(q)} q tokens."
        )
    for row, kv_len in enumerate(kv_lens):
        start, end = q_starts[row], q_starts[row + 1]
        if not 0 <= end - start <= kv_len <= room:
            raise ValueError(
                f"Row {row} has {end - start} q tokens in a context of {kv_len} and pages for {room} tokens;"
                " none of the three may exceed the next."
            )
        pages = plan.page_table[row, : -(-kv_len // plan.page_size)].long()
        keys = k_cache[pages].flatten(0, 1)[:kv_len]
        values = v_cache[pages].flatten(0, 1)[:kv_len]
        out[start:end] = _attend(q[start:end], keys, values, scoring)
    return out


def _attend(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scoring: Scoring) -> torch.Tensor:
    """Attend q ``[n, Hq, D]``, the last n of m tokens, to keys and values ``[m, Hkv, D]``; return like q."""
    num_q, num_q_heads, head_dim = q.shape
    num_kv, num_kv_heads, _ = keys.shape
    grouped = q.float().view(num_q, num_kv_heads, num_q_heads // num_kv_heads, head_dim)
    scores = torch.einsum("qhgd,khd->hgqk", grouped, keys.float()) * scoring.scale
    if scoring.soft_cap is not None:
        scores = scoring.soft_cap * torch.tanh(scores / scoring.soft_cap)
    key = torch.arange(num_kv, dtype=torch.int64, device=q.device)
    query = torch.arange(num_kv - num_q, num_kv, dtype=torch.int64, device=q.device)[:, None]
    if scoring.slopes is not None:
        slopes = torch.tensor(scoring.slopes, dtype=torch.float32, device=q.device)
        scores -= slopes.view(num_kv_heads, -1, 1, 1) * (query - key).abs()
    scores = scores.masked_fill(~_visible(key, query, scoring), float("-inf"))
    if scoring.sinks is not None:
        sinks = scoring.sinks.float().view(num_kv_heads, -1, 1, 1).expand(-1, -1, num_q, -1)
        scores = torch.cat((scores, sinks), dim=-1)
    weights = torch.softmax(scores, dim=-1)[..., :num_kv]
    out = torch.einsum("hgqk,khd->qhgd", weights, values.float())
    return out.reshape(num_q, num_q_heads, head_dim).to(q.dtype)


def _visible(key: torch.Tensor, query: torch.Tensor, scoring: Scoring) -> torch.Tensor:
    """Which positions key ``[m]`` the positions query ``[n, 1]`` see, ``[n, m]``."""
    distance = query - key
    if scoring.causal:
        return distance >= 0 if scoring.window is None else (distance >= 0) & (distance < scoring.window)
    return distance.abs() < (len(key) if scoring.window is None else scoring.window)


def check_device(scoring: Scoring, device: torch.device) -> None:
    """Raise ModelError if attention on that device cannot score so: no kernel of ours there knows a field."""
    can = CAN if device.type == "cpu" else _gpu().CAN
    if not scoring.asks <= can:
        raise ModelError(
            f"This model's attention has {', '.join(sorted(scoring.asks - can))}, which no kernel on"
            f" {device.type} knows. Known there: {', '.join(sorted(can))}."
        )


@functools.cache
def _gpu() -> ModuleType:
    from .gpu import attention

    return attention


def _check(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    plan: PagedAttentionPlan,
    scoring: Scoring,
) -> None:
    """Raise ValueError unless shapes and layout fit; the C kernel trusts what passed here."""
    shape = k_cache.shape
    if (
        v_cache.shape != shape
        or q.shape[2] != shape[3]
        or q.shape[1] % shape[2]
        or shape[1] != plan.page_size
    ):
        raise ValueError(
            f"q {list(q.shape)} [T, Hq, D] does not fit the caches {list(shape)} and {list(v_cache.shape)}"
            f" [num_pages, page_size, Hkv, D] with pages of {plan.page_size}; Hq must be a multiple of Hkv."
        )
    if not (k_cache.is_contiguous() and v_cache.is_contiguous()):
        raise ValueError("The K and V caches must be contiguous.")
    if scoring.asks:
        check_scoring(scoring, CAN, q.shape[1], "paged_attention")
