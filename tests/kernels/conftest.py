"""Runs every kernel test on each implementation this machine has, and builds paged attention cases."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable
from types import ModuleType

import pytest
import torch

from rootlet.kernels import activation, attention, embedding, norm, rotary, token_mask
from rootlet.kernels.attention import PagedAttentionPlan

MODULES = (activation, attention, embedding, norm, rotary, token_mask)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random tensors every time: a tolerance holds or does not."""
    torch.manual_seed(0)


def generic_build() -> ModuleType | None:
    """The build for any CPU of this kind, which differs from the best one in vector width and rounding."""
    try:
        return importlib.import_module("rootlet.kernels._cpu_base")
    except ImportError:
        return None


def use(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the implementation of that name behind all launchers."""
    for module in MODULES:
        if name == "torch":
            monkeypatch.setattr(module, "_C", None)
        elif name == "generic" and module._C is not None:
            monkeypatch.setattr(module, "_C", generic_build())


@pytest.fixture(params=["default", "generic", "torch"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each implementation in turn: the best one, the generic C build, the torch references.

    Where no C extension was built, all three are the torch references.
    """
    use(request.param, monkeypatch)


@pytest.fixture(params=["default", "generic"])
def c_build(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same without the references, for tests that compare with them."""
    use(request.param, monkeypatch)


class PagedCase:
    """Queries and a paged cache with random contents, for rows of (q tokens, context length)."""

    def __init__(self, rows, *, page_size, heads, dtype=torch.float32, seed=0) -> None:
        num_q, num_kv, dim = heads
        random = torch.Generator().manual_seed(seed)
        used = [-(-context // page_size) for _, context in rows]
        num_pages = sum(used) + 3
        order = (torch.randperm(num_pages - 1, generator=random) + 1).tolist()  # page 0 is padding
        # entries past a row's last page must never be read as pages
        table = torch.full((len(rows), max(used, default=0) + 2), 2**31 - 1, dtype=torch.int32)
        for row, count in enumerate(used):
            table[row, :count] = torch.tensor(order[:count], dtype=torch.int32)
            del order[:count]
        starts = list(itertools.accumulate((q for q, _ in rows), initial=0))
        self.rows = rows
        self.k = torch.randn(num_pages, page_size, num_kv, dim, generator=random).to(dtype)
        self.v = torch.randn(num_pages, page_size, num_kv, dim, generator=random).to(dtype)
        self.q = torch.randn(starts[-1], num_q, dim, generator=random).to(dtype)
        self.plan = PagedAttentionPlan(
            page_table=table,
            q_starts=torch.tensor(starts, dtype=torch.int32),
            kv_lens=torch.tensor([context for _, context in rows], dtype=torch.int32),
            page_size=page_size,
            max_q=max((q for q, _ in rows), default=0),
            max_kv=max((context for _, context in rows), default=0),
        )

    def row_tensors(self, row: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """q ``[n, Hq, D]``, keys and values ``[m, Hkv, D]`` of one row, out of their pages."""
        starts, page_size = self.plan.q_starts.tolist(), self.plan.page_size
        context = self.rows[row][1]
        pages = self.plan.page_table[row, : -(-context // page_size)].long()
        keys, values = (cache[pages].flatten(0, 1)[:context] for cache in (self.k, self.v))
        return self.q[starts[row] : starts[row + 1]], keys, values

    def repaged(self, rows: list[tuple[int, int, int]], page_size: int) -> PagedCase:
        """The same contents cut anew: rows of (row here, q tokens, context length), in other pages."""
        case = PagedCase(
            [(q, context) for _, q, context in rows],
            page_size=page_size,
            heads=(self.q.shape[1], *self.k.shape[2:]),
            dtype=self.q.dtype,
            seed=1,
        )
        starts = case.plan.q_starts.tolist()
        for row, (source, num_q, context) in enumerate(rows):
            q, keys, values = self.row_tensors(source)
            first = len(q) - (self.rows[source][1] - context) - num_q
            case.q[starts[row] : starts[row + 1]] = q[first : first + num_q]
            position = torch.arange(context)
            page = case.plan.page_table[row, position // page_size].long()
            case.k[page, position % page_size] = keys[:context]
            case.v[page, position % page_size] = values[:context]
        return case


@pytest.fixture(scope="session")
def paged_case() -> Callable[..., PagedCase]:
    """Builder of :class:`PagedCase`."""
    return PagedCase
