"""Ownership of KV pages: ids and reference counts, nothing else (no torch, no contents).

One reference is one table or one tree node that holds the page. A page whose count drops to zero is
free at once; what its memory contains from then on is nobody's.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import OutOfPagesError

PADDING_PAGE = 0


class PagePool:
    """A fixed set of page ids ``1 .. num_pages-1`` with reference counts. Not thread-safe: one owner.

    ``num_pages`` counts page 0, the padding page: kernels may read and write it for padded rows, so it is
    never handed out and never freed.

    The order is deterministic, last in first out: a fresh pool hands out 1, 2, 3, …; pages released
    together come back together and in the order they were given to :meth:`release`.

    Misuse (releasing a free page, retaining a free page) is a bug of the engine, not of its user, and
    raises AssertionError also under ``python -O``; the pool is then no longer to be trusted.
    """

    def __init__(self, num_pages: int) -> None:
        if num_pages < 2:
            raise AssertionError(
                f"A pool needs the padding page and at least one more, got num_pages={num_pages}."
            )
        self._num_pages = num_pages
        self._free = list(range(num_pages - 1, PADDING_PAGE, -1))  # the end of the list goes out first
        self._refcounts = [0] * num_pages

    @property
    def num_pages(self) -> int:
        """Pages in all, the padding page included."""
        return self._num_pages

    @property
    def num_free(self) -> int:
        """Pages that :meth:`allocate` could hand out now."""
        return len(self._free)

    def allocate(self, count: int) -> list[int]:
        """Take ``count`` pages, each with a reference count of 1: all of them or none.

        Raises OutOfPagesError if fewer are free.
        """
        if count > len(self._free):
            raise OutOfPagesError(
                f"{count} pages were asked for but only {len(self._free)} of {self._num_pages - 1} are free: "
                "evict cached pages or preempt a request first."
            )
        if count <= 0:
            if count < 0:
                raise AssertionError(f"The number of pages to allocate cannot be negative, got {count}.")
            return []
        pages = self._free[-count:]
        del self._free[-count:]
        pages.reverse()
        refcounts = self._refcounts
        for page in pages:
            refcounts[page] = 1
        return pages

    def retain(self, pages: Sequence[int]) -> None:
        """Add one reference to each page; they must be held by someone already."""
        refcounts = self._refcounts
        for page in pages:
            count = refcounts[page]
            if count < 1:
                raise AssertionError(f"Page {page} is free: only a page that somebody holds can be retained.")
            refcounts[page] = count + 1

    def release(self, pages: Sequence[int]) -> None:
        """Drop one reference from each page; those without any left become free."""
        refcounts = self._refcounts
        freed = []
        for page in pages:
            count = refcounts[page] - 1
            if count < 0:
                raise AssertionError(f"Page {page} was released but nobody holds it.")
            refcounts[page] = count
            if not count:
                freed.append(page)
        freed.reverse()
        self._free += freed

    def refcount(self, page: int) -> int:
        """References held on ``page`` (0 if it is free or the padding page)."""
        return self._refcounts[page]

    def check_invariants(self) -> None:
        """Walk everything; raise AssertionError if a page is lost, free twice, or free while held."""
        free = set(self._free)
        if len(free) != len(self._free):
            raise AssertionError("A page is on the free list twice.")
        if self._refcounts[PADDING_PAGE] != 0 or PADDING_PAGE in free:
            raise AssertionError("The padding page was handed out or freed.")
        for page in range(1, self._num_pages):
            if (self._refcounts[page] == 0) != (page in free):
                where = "on" if page in free else "not on"
                raise AssertionError(
                    f"Page {page} has {self._refcounts[page]} references and is {where} the free list."
                )
