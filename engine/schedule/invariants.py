"""What must hold of a scheduler between two steps."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from ...cache.slot_pool import PADDING_SLOT
from .request import RequestStatus

if TYPE_CHECKING:
    from .scheduler import Scheduler


def check_invariants(scheduler: Scheduler) -> None:
    """Assert everything that must hold between steps (for tests; walks the whole state).

    1. free + held by tables or tree = all pages but the padding page (in the pool's own check)
    2. a page's refcount = tables holding it + 1 if the tree does
    3. num_cached <= num_computed <= num_tokens for every request, and at most one token is pending
    4. a running request has exactly the pages its computed tokens need, and a slot of its own
    5. one that may decode unexamined has one token to compute, a page for it, and room below its limit
    """
    scheduler.cache.check_invariants()
    scheduler.pool.check_invariants()
    tables: Counter[int] = Counter()
    for request in scheduler.running:
        assert request.status is RequestStatus.RUNNING
        assert request.num_computed_tokens <= request.num_tokens <= request.max_num_tokens
        drafts = request.speculation.drafts if request.speculation is not None else ()
        unverified = 1 + len(drafts) if drafts else 0
        assert 0 <= request.num_pending_tokens <= 1 + unverified
        if request.decodes_freely:
            assert request.num_prompt_tokens <= request.num_computed_tokens == request.num_tokens - 1
            assert request.num_computed_tokens < len(request.pages) * scheduler.page_size
            assert request.num_tokens < request.max_num_tokens
        assert len(request.pages) == scheduler.num_pages(request.num_computed_tokens)
        tables.update(request.pages)
    for request in scheduler.compiling:
        assert request.status is RequestStatus.COMPILING
    for request in scheduler.waiting + scheduler.compiling:
        assert request.status in (RequestStatus.WAITING, RequestStatus.COMPILING)
        assert not request.pages
        assert request.slot == PADDING_SLOT
        assert request.num_computed_tokens == 0
        assert not request.decodes_freely
    in_tree = [scheduler.pool.refcount(page) - tables[page] for page in range(scheduler.pool.num_pages)]
    assert set(in_tree) <= {0, 1}
    assert sum(in_tree) == scheduler.cache.num_pages
    assert in_tree[0] == tables[0] == 0
    slots = [request.slot for request in scheduler.running]
    assert len(set(slots)) == len(slots)
    assert [r.arrival for r in scheduler.running] == sorted(r.arrival for r in scheduler.running)
    assert [r.arrival for r in scheduler.waiting] == sorted(r.arrival for r in scheduler.waiting)
