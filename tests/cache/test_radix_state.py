"""The radix tree in random use, against a model that knows every cached prefix and what every page contains.

The KV of a token depends on all tokens before it, so the simulated content of one place in a page is the
namespace and the whole prefix up to and including its token. A match is right only if the pages it returns
contain exactly the prefixes asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from rootlet.cache.page_pool import PagePool
from rootlet.cache.radix_cache import Match, Prefix, RadixCache
from rootlet.cache.radix_node import token_array

NUM_PAGES = 60
Key = tuple[object, tuple[int, ...]]  # namespace and tokens


@dataclass
class Request:
    """A running sequence: its tokens, how many have KV, the pages of its table, and its lock."""

    namespace: object
    tokens: list[int]
    num_computed: int
    pages: list[int]
    place: Prefix


def common(left: tuple[int, ...], right: tuple[int, ...]) -> int:
    return next((i for i, (a, b) in enumerate(zip(left, right)) if a != b), min(len(left), len(right)))


class TreeMachine(RuleBasedStateMachine):
    """Requests start, compute chunks, finish or abort; pages are evicted and flushed at any time.

    Model: ``cached`` maps (namespace, tokens up to the end of a page) to the page holding them.
    """

    page_size = 0

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(NUM_PAGES)
        self.cache = RadixCache(self.pool, self.page_size)
        self.cached: dict[Key, int] = {}
        self.contents: dict[tuple[int, int], Key] = {}
        self.requests: list[Request] = []
        self.seen: list[tuple[int, ...]] = [()]

    # ---- drawing

    def draw_tokens(self, data: st.DataObject, max_size: int = 40) -> list[int]:
        """Often a variation of something seen before; two letters make coincidences likely."""
        old = data.draw(st.sampled_from(self.seen))
        kept = old[: data.draw(st.integers(0, len(old)))]
        tokens = [*kept, *data.draw(st.lists(st.integers(0, 1), min_size=not kept, max_size=12))][:max_size]
        if tuple(tokens) not in self.seen:
            self.seen.append(tuple(tokens))
        return tokens

    def draw_request(self, data: st.DataObject) -> Request:
        return self.requests[data.draw(st.integers(0, len(self.requests) - 1))]

    # ---- the model's view

    def num_pages(self, num_tokens: int) -> int:
        return -(-num_tokens // self.page_size)

    def expected_match(self, namespace: object, wanted: tuple[int, ...]) -> int:
        return max((common(key[1], wanted) for key in self.cached if key[0] == namespace), default=0)

    def model_insert(self, namespace: object, tokens: list[int], pages: list[int]) -> None:
        present = [key[1] for key in self.cached if key[0] == namespace]
        for index, page in enumerate(pages):
            prefix = tuple(tokens[: (index + 1) * self.page_size])
            if not any(other[: len(prefix)] == prefix for other in present):
                self.cached[namespace, prefix] = page
        for other in present:
            covered = len(other) < len(tokens) and tuple(tokens[: len(other)]) == other
            if len(other) % self.page_size and covered:
                del self.cached[namespace, other]

    def locked(self) -> set[Key]:
        return {
            (request.namespace, tuple(request.tokens[:end]))
            for request in self.requests
            for end in range(self.page_size, request.place.num_tokens + 1, self.page_size)
        }

    def table_references(self) -> Counter[int]:
        return Counter(page for request in self.requests for page in request.pages)

    def check_contents(
        self, namespace: object, tokens: list[int], pages: list[int], start: int, end: int
    ) -> None:
        for position in range(start, end):
            page, offset = pages[position // self.page_size], position % self.page_size
            assert self.contents[page, offset] == (namespace, tuple(tokens[: position + 1]))

    # ---- what an engine does

    def match(self, namespace: object, tokens: list[int], limit: int) -> Match:
        wanted = tuple(tokens[: max(limit, 0)])
        match = self.cache.match(token_array(tokens) if limit % 2 else tokens, limit, namespace)
        assert match.num_tokens == self.expected_match(namespace, wanted)
        assert match.num_tokens == len(match.pages) * self.page_size + match.partial_tokens
        assert 0 <= match.partial_tokens < self.page_size
        assert (match.partial_page is None) == (match.partial_tokens == 0)
        assert match.node.num_tokens == len(match.pages) * self.page_size
        assert self.cache.pages(match.node) == match.pages
        pages = [*match.pages, match.partial_page]
        self.check_contents(namespace, tokens, pages, 0, match.num_tokens)
        return match

    def evict(self, wanted: int) -> int:
        references, locked = self.table_references(), self.locked()
        free_before = self.pool.num_free
        freed = self.cache.evict(wanted)
        assert freed == self.pool.num_free - free_before
        gone = self.observe_gone()
        assert not gone & locked
        assert freed == sum(references[self.cached[key]] == 0 for key in gone)
        assert freed <= max(wanted, 0)
        for key in gone:
            del self.cached[key]
        assert freed >= wanted or not self.cached.keys() - locked
        return freed

    def observe_gone(self) -> set[Key]:
        """Cached prefixes of the model that the tree holds no longer; the rest must be prefix-closed."""
        gone = set()
        for namespace, tokens in self.cached:
            if self.cache.match(tokens, len(tokens), namespace).num_tokens < len(tokens):
                gone.add((namespace, tokens))
        for namespace, tokens in self.cached.keys() - gone:
            above = (len(tokens) - 1) // self.page_size * self.page_size
            assert above == 0 or (namespace, tokens[:above]) not in gone
        return gone

    def allocate(self, count: int) -> list[int] | None:
        if count > self.pool.num_free:
            self.evict(count - self.pool.num_free)
        return self.pool.allocate(count) if count <= self.pool.num_free else None

    def compute(self, request: Request, count: int) -> None:
        """Write the KV of the next ``count`` tokens; nothing of the tree's may change by that."""
        vouched = {
            (page, offset): key
            for key, page in self.cached.items()
            for offset in range((len(key[1]) - 1) % self.page_size + 1)
        }
        for position in range(request.num_computed, request.num_computed + count):
            place = request.pages[position // self.page_size], position % self.page_size
            assert place not in vouched
            self.contents[place] = (request.namespace, tuple(request.tokens[: position + 1]))
        request.num_computed += count

    # ---- rules

    @rule(data=st.data(), namespace=st.sampled_from([None, "adapter"]))
    def start(self, data: st.DataObject, namespace: object) -> None:
        tokens = self.draw_tokens(data)
        match = self.match(namespace, tokens, len(tokens) - 1)
        self.cache.lock(match.node)
        self.pool.retain(match.pages)
        request = Request(namespace, tokens, match.num_tokens, list(match.pages), match.node)
        self.requests.append(request)  # from here on the model counts its lock and references
        saved = {offset: self.contents[match.partial_page, offset] for offset in range(match.partial_tokens)}
        pages = self.allocate(self.num_pages(len(tokens)) - len(match.pages))
        if pages is None:
            self.leave(request)
            return
        request.pages += pages
        for offset, content in saved.items():  # the copy: reads come before any write of this step
            self.contents[pages[0], offset] = content
        self.compute(request, data.draw(st.integers(0, len(tokens) - match.num_tokens)))

    @precondition(lambda self: self.requests)
    @rule(data=st.data(), adopt=st.booleans())
    def chunk(self, data: st.DataObject, adopt: bool) -> None:
        """Compute some more, publish the full pages, move the lock; perhaps adopt the tree's duplicates."""
        request = self.draw_request(data)
        self.compute(request, data.draw(st.integers(0, len(request.tokens) - request.num_computed)))
        full = request.num_computed // self.page_size
        tokens, pages = request.tokens[: full * self.page_size], request.pages[:full]
        place = self.cache.insert(tokens, pages, request.namespace)
        assert place.num_tokens == len(tokens)
        self.model_insert(request.namespace, tokens, pages)
        self.cache.lock(place)
        self.cache.unlock(request.place)
        request.place = place
        theirs = self.cache.pages(place)
        self.check_contents(request.namespace, tokens, theirs, 0, len(tokens))
        if adopt:
            self.pool.retain(theirs)
            self.pool.release(pages)
            request.pages[:full] = theirs

    @precondition(lambda self: self.requests)
    @rule(data=st.data(), token=st.integers(0, 1))
    def decode(self, data: st.DataObject, token: int) -> None:
        request = self.draw_request(data)
        if self.num_pages(len(request.tokens) + 1) > len(request.pages):
            pages = self.allocate(1)
            if pages is None:
                return
            request.pages += pages
        request.tokens.append(token)

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        request = self.draw_request(data)
        tokens = request.tokens[: request.num_computed]
        pages = request.pages[: self.num_pages(len(tokens))]
        self.cache.insert(tokens, pages, request.namespace)
        self.model_insert(request.namespace, tokens, pages)
        self.seen.append(tuple(tokens))
        self.leave(request)

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        self.leave(self.draw_request(data))

    def leave(self, request: Request) -> None:
        self.requests.remove(request)
        self.cache.unlock(request.place)
        self.pool.release(request.pages)

    @rule(data=st.data(), namespace=st.sampled_from([None, "adapter", "unknown"]), limit=st.integers(-1, 42))
    def look_up(self, data: st.DataObject, namespace: object, limit: int) -> None:
        self.match(namespace, self.draw_tokens(data), limit)

    @rule(count=st.integers(0, 20))
    def evict_some(self, count: int) -> None:
        self.evict(count)

    @rule(namespace=st.sampled_from([None, "adapter"]))
    def flush(self, namespace: object) -> None:
        concerned = {key for key in self.cached if namespace is None or key[0] == namespace}
        if concerned & self.locked():
            with pytest.raises(AssertionError, match="running requests use"):
                self.cache.flush(namespace)
            return
        assert self.cache.flush(namespace) == len(concerned)
        for key in concerned:
            del self.cached[key]

    # ---- always

    @invariant()
    def agrees(self) -> None:
        self.cache.check_invariants()
        self.pool.check_invariants()
        assert self.cache.num_pages == len(self.cached)
        assert self.cache.num_locked == len(self.locked())
        assert self.cache.num_evictable == len(self.cached.keys() - self.locked())
        references = self.table_references() + Counter(self.cached.values())
        self.expect_references(references)

    def expect_references(self, references: Counter[int]) -> None:
        held: Iterable[int] = (self.pool.refcount(page) for page in range(NUM_PAGES))
        assert list(held) == [references[page] for page in range(NUM_PAGES)]
        assert self.pool.num_free == NUM_PAGES - 1 - len(references)

    def teardown(self) -> None:
        while self.requests:
            self.leave(self.requests[0])
        self.cache.flush()
        self.pool.check_invariants()
        assert self.pool.num_free == NUM_PAGES - 1


def _machine(size: int) -> type:
    machine = type(f"TreeMachine{size}", (TreeMachine,), {"page_size": size})
    machine.TestCase.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)
    return machine.TestCase


TestPageSize1 = _machine(1)
TestPageSize2 = _machine(2)
TestPageSize4 = _machine(4)
TestPageSize16 = _machine(16)
