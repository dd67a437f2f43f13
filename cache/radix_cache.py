"""Prefix reuse: a radix tree from token sequences to the pages that hold their KV (pure Python).

The idea: nodes begin and end on page boundaries, so a page belongs to exactly one node and sharing is by
whole pages. Reuse is nevertheless exact to the token, because a match may go on *inside* the next page: the
caller copies that page and continues in its own. Only the last page of a leaf may be partly filled.

Who owns what: the tree holds one reference (see :class:`~.page_pool.PagePool`) on each of its pages and each
table using a page holds another. Pages in the tree are never written again at offsets the tree vouches for.

The usual life of a request::

    match(prompt, len(prompt) - 1) -> lock(match.node), pool.retain(match.pages), copy match.partial_page
    after each prefill chunk:  node = insert(tokens so far, full pages); lock(node); unlock(old node)
    at the end:                insert(tokens with valid KV, all pages);  unlock(node); pool.release(all pages)

What it deliberately lacks: any knowledge of requests, devices or hit rates, and thread safety.
"""

from __future__ import annotations

from array import array
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

from .leaf_queue import LeafQueue
from .page_pool import PagePool
from .radix_check import check_nodes, check_ownership, check_queue
from .radix_node import Node, Root, common_prefix, token_array


class Prefix:
    """A place in the tree: ``num_tokens`` tokens (whole pages) down the path to a node. Opaque to callers.

    ``node`` is None exactly where ``num_tokens`` is 0: such a place stands for no page.

    It stays good while it is locked. Unlocked, it is good until the next :meth:`RadixCache.evict` or
    :meth:`RadixCache.flush`; locking one whose pages are gone raises AssertionError.
    """

    __slots__ = ("node", "num_tokens")

    def __init__(self, node: Node | None, num_tokens: int) -> None:
        self.node = node
        self.num_tokens = num_tokens

    def __repr__(self) -> str:
        return f"Prefix(num_tokens={self.num_tokens})"


@dataclass(frozen=True, slots=True)
class Match:
    """What :meth:`RadixCache.match` found.

    ``num_tokens == len(pages) * page_size + partial_tokens``. ``pages`` are fully matched pages, to be
    shared. ``partial_page`` (None if there is none) is a cached page whose first ``partial_tokens`` tokens
    (``0 < partial_tokens < page_size``) continue the match: allocate an own page and copy its KV. The copy
    must run before anything computed in the same step is written; then no lock is needed on that page, even
    if it is evicted and handed out again in between (the copies of one step read everything before they
    write).

    ``node`` is the place to lock; it covers ``pages`` and not the partial page.
    """

    num_tokens: int
    pages: list[int]
    node: Prefix
    partial_page: int | None
    partial_tokens: int


class RadixCache:
    """The prefix tree of one engine over the pages of ``pool``.

    Tokens are ints that fit int32, given as a list or, faster, as ``array('i')`` (see
    :func:`~.radix_node.token_array`). Every ``namespace`` (any hashable: adapter, weights version) is a tree
    of its own; eviction is common to all. With ``enabled=False`` nothing is ever kept or found.

    Time is a logical clock: each match or insert is one tick, given to all nodes on its path. Misuse
    (unlocking what is not locked, stale places, wrong page counts) raises AssertionError.
    """

    def __init__(self, pool: PagePool, page_size: int, enabled: bool = True) -> None:
        if page_size < 1:
            raise AssertionError(f"A page holds at least one token, got page_size={page_size}.")
        self._pool = pool
        self._page_size = page_size
        self._enabled = enabled
        self._roots: dict[Hashable, Root] = {}
        self._leaves = LeafQueue()
        self._clock = 0
        self._num_created = 0
        self._num_pages = 0
        self._num_locked = 0

    @property
    def page_size(self) -> int:
        """Tokens per page."""
        return self._page_size

    @property
    def enabled(self) -> bool:
        """Whether anything is kept at all."""
        return self._enabled

    @property
    def num_pages(self) -> int:
        """Pages the tree holds."""
        return self._num_pages

    @property
    def num_locked(self) -> int:
        """Pages of locked nodes: eviction cannot touch them."""
        return self._num_locked

    @property
    def num_evictable(self) -> int:
        """Pages of unlocked nodes. Evicting one frees it unless a table holds it too."""
        return self._num_pages - self._num_locked

    # ---- lookup

    def match(self, tokens: Sequence[int], limit: int, namespace: Hashable = None) -> Match:
        """Find the longest cached prefix of ``tokens[:limit]``, exact to the token.

        Changes nothing but the clock of the nodes on the path. The first of equally long continuations inside
        a page is chosen by the tree's contents alone, hence deterministically.
        """
        size, end = self._page_size, min(len(tokens), limit)
        node: Node | None = self._roots.get(namespace)
        pages: list[int] = []
        place, depth, partial = Prefix(None, 0), 0, None
        if node is None or end <= 0:
            return Match(0, pages, place, None, 0)
        clock = self._tick()
        while depth < end:
            node.last_access = clock
            child, shared = self._continue(node, tokens, depth, end)
            if child is None:
                break
            child.last_access = clock
            full, rest = divmod(shared, size)
            if full:
                pages += child.pages if full == len(child.pages) else child.pages[:full]
                depth += full * size
                place = Prefix(child, depth)
            if rest:
                partial = child.pages[full], rest
            if rest or shared < len(child.tokens):
                break
            node = child
        partial_page, partial_tokens = partial or (None, 0)
        return Match(depth + partial_tokens, pages, place, partial_page, partial_tokens)

    def _continue(self, node: Node, tokens: Sequence[int], depth: int, end: int) -> tuple[Node | None, int]:
        """The child of ``node`` sharing most with ``tokens[depth:end]``, and how many tokens it shares."""
        query = token_array(tokens[depth : min(depth + self._page_size, end)]).tobytes()
        child = node.children.get(query)
        if child is not None:
            return child, common_prefix(child.tokens, tokens, depth, end)
        return node.closest_child(query) or (None, 0)

    def path(self, place: Prefix) -> tuple[int, ...]:
        """Identities (creation numbers) of the nodes from the top to ``place``; empty at the root.

        Two places share as many leading entries as their paths share nodes: enough to order requests by
        their position in the tree. The numbers of a path may change whenever the tree does.
        """
        serials = []
        node = place.node
        while node is not None and node.parent is not None:
            serials.append(node.serial)
            node = node.parent
        return tuple(reversed(serials))

    def pages(self, place: Prefix) -> list[int]:
        """The tree's pages from the top to ``place``, in order.

        After :meth:`insert` they differ from the caller's where the tree had those tokens already; a caller
        may retain them, put them in its table and release its own duplicates.
        """
        parts = []
        node = place.node
        while node is not None and node.parent is not None:
            parts.append(node.pages)
            node = node.parent
        pages = [page for part in reversed(parts) for page in part]
        return pages[: place.num_tokens // self._page_size]

    # ---- protection

    def lock(self, place: Prefix) -> None:
        """Protect exactly the pages from the root to ``place`` from eviction.

        Locks are counted: each wants its :meth:`unlock`. A place inside a node splits it there, so that the
        rest of a long cached sequence stays evictable: a request sharing its first page with it must not pin
        all of it. A place without a full page is fine and protects nothing. Raises AssertionError if the
        place is stale.
        """
        if place.node is None:
            return
        node = place.node = self._node_ending_at(place.node, place)
        while node.parent is not None:
            if node.lock_count == 0:
                self._num_locked += len(node.pages)
            node.lock_count += 1
            node = node.parent

    def unlock(self, place: Prefix) -> None:
        """Undo one :meth:`lock` of the same place."""
        node = place.node
        if node is None:
            return
        if node.parent is None or node.end != place.num_tokens:
            raise AssertionError(f"{place} is not locked.")
        while node.parent is not None:
            if node.lock_count < 1:
                raise AssertionError(f"{place} was unlocked more often than it was locked.")
            node.lock_count -= 1
            if node.lock_count == 0:
                self._num_locked -= len(node.pages)
                if not node.children:
                    self._leaves.push(node)
            node = node.parent

    def _node_ending_at(self, node: Node, place: Prefix) -> Node:
        """The node that ends exactly at ``place``: ``place.node``, or one above, split if it goes beyond."""
        if node.parent is None or node.end < place.num_tokens:
            raise AssertionError(f"{place} is stale: its pages left the tree, match again before locking.")
        while node.parent is not None and node.start >= place.num_tokens:  # split by someone else since
            node = node.parent
        return self._split(node, place.num_tokens - node.start) if node.end > place.num_tokens else node

    # ---- growth

    def insert(self, tokens: Sequence[int], pages: Sequence[int], namespace: Hashable = None) -> Prefix:
        """Make all of ``tokens`` findable, their KV being in ``pages``; return the place to lock.

        That place covers the full pages and not the partly filled one, which needs no protection: nobody
        shares it, it is only copied from.

        ``pages`` are ``ceil(len(tokens) / page_size)`` ids; the last page may be partly filled. The tree
        retains the pages it takes. Pages whose tokens it has already are not taken and stay the caller's
        alone. A partly filled cached page whose tokens these continue is given up for the fuller one.
        """
        size, count = self._page_size, len(tokens)
        if len(pages) != -(-count // size):
            needed = -(-count // size)
            raise AssertionError(f"{count} tokens fill {needed} pages of {size}, got {len(pages)} pages.")
        if not self._enabled or count == 0:
            return Prefix(None, 0)
        root = self._roots.get(namespace) or Root(namespace)
        self._tick()
        node = self._add(root, tokens, pages)
        self._roots[namespace] = root  # not before something hangs below it
        full_tokens = count // size * size
        while node.parent is not None and node.start >= full_tokens:
            node = node.parent
        return Prefix(node, full_tokens) if full_tokens else Prefix(None, 0)

    def _add(self, node: Node, tokens: Sequence[int], pages: Sequence[int]) -> Node:
        """Walk down from a root, hang what is new below the last shared page, return the node of the end."""
        size, end, depth = self._page_size, len(tokens), 0
        while True:
            node.last_access = self._clock
            child, shared = self._continue(node, tokens, depth, end)
            full = shared // size * size
            covered = depth + shared == end
            if child is None or not (full or covered):  # no page in common, at most the beginning of one
                return self._grow(node, tokens, depth, pages)
            child.last_access = self._clock
            if covered:
                return child
            depth += full
            if full < len(child.tokens):
                return self._grow(self._split(child, full), tokens, depth, pages)
            node = child

    def _grow(self, node: Node, tokens: Sequence[int], depth: int, pages: Sequence[int]) -> Node:
        """Hang ``tokens[depth:]`` below ``node`` and drop the partly filled page that it makes superfluous.

        That page is a whole leaf (splitting made it one) and never locked: a place to lock ends with a full
        page.
        """
        size = self._page_size
        run = token_array(tokens[depth:])
        taken = list(pages[depth // size :])
        self._pool.retain(taken)  # before anything is released: it may be the same page, filled further
        lesser = node.partial_leaf_within(run[:size].tobytes())
        child = Node(run, taken, depth, self._next_serial())
        child.last_access = self._clock
        node.add_child(child, size)
        self._num_pages += len(taken)
        self._leaves.push(child)
        if lesser is not None:
            self._drop_pages(lesser, 1)
        return child

    def _split(self, node: Node, at: int) -> Node:
        return node.split(at, self._next_serial(), self._page_size)

    # ---- shrinking

    def evict(self, num_pages: int) -> int:
        """Free at least ``num_pages`` pages if that is possible; return how many became free.

        Takes the least recently used unlocked leaf and drops pages from its end, no more than are still
        needed, then the next leaf; a parent left without children becomes a leaf. A page that a table holds
        as well leaves the tree without becoming free and is not counted, so this goes on until enough pages
        are free or nothing unlocked is left. O(log n) per leaf, amortised, plus O(1) per page.
        """
        freed = 0
        while freed < num_pages:
            leaf = self._leaves.pop()
            if leaf is None:
                break
            freed += self._drop_pages(leaf, num_pages - freed)
        return freed

    def _drop_pages(self, leaf: Node, count: int) -> int:
        """Drop up to ``count`` pages from the end of an unlocked leaf; return how many became free."""
        size, keep = self._page_size, max(0, len(leaf.pages) - count)
        dropped = leaf.pages[keep:]
        if keep:
            del leaf.pages[keep:], leaf.tokens[keep * size :]
            self._leaves.push(leaf)
        else:
            self._remove(leaf)
        self._num_pages -= len(dropped)
        free_before = self._pool.num_free
        self._pool.release(dropped)
        return self._pool.num_free - free_before

    def _remove(self, leaf: Node) -> None:
        """Take a leaf out of the tree; its parent may become a candidate, an empty root goes."""
        parent = leaf.parent
        assert parent is not None  # leaves that lose their pages are in the tree still
        parent.remove_child(leaf, self._page_size)
        self._leaves.forget(leaf)
        leaf.tokens, leaf.pages = array("i"), []  # a stale queue entry must not keep them alive
        if parent.is_candidate:
            self._leaves.push(parent)
        elif isinstance(parent, Root) and not parent.children:
            del self._roots[parent.namespace]

    def flush(self, namespace: Hashable = None) -> int:
        """Drop everything (or, given one, everything of a namespace) and return the number of pages dropped.

        None means every namespace, the default one included. Raises AssertionError and drops nothing if
        something in question is locked.
        """
        names = list(self._roots) if namespace is None else [namespace] if namespace in self._roots else []
        nodes = [node for name in names for node in self._walk(self._roots[name])]
        locked = sum(len(node.pages) for node in nodes if node.lock_count)
        if locked:
            raise AssertionError(
                f"The cache cannot be flushed while running requests use {locked} of its pages."
            )
        for name in names:
            del self._roots[name]
        dropped = [page for node in nodes for page in node.pages]
        for node in nodes:
            node.parent = None
            self._leaves.forget(node)
            node.tokens, node.pages, node.children = array("i"), [], {}
        self._num_pages -= len(dropped)
        self._pool.release(dropped)
        return len(dropped)

    # ---- small helpers

    def check_invariants(self) -> None:
        """Walk the whole tree; raise AssertionError naming the first thing that is wrong."""
        nodes = [node for root in self._roots.values() for node in self._walk(root)]
        check_nodes(nodes, self._page_size, self._clock)
        check_ownership(nodes, self._pool)
        check_queue(nodes, self._leaves)
        if any(not root.children or root.namespace != name for name, root in self._roots.items()):
            raise AssertionError("A namespace has an empty root or another one's.")
        held = sum(len(node.pages) for node in nodes)
        locked = sum(len(node.pages) for node in nodes if node.lock_count)
        if (held, locked) != (self._num_pages, self._num_locked):
            raise AssertionError(
                f"Counted {self._num_pages} pages, {self._num_locked} locked; there are {held}, {locked}."
            )

    def _tick(self) -> int:
        self._clock += 1
        return self._clock

    def _next_serial(self) -> int:
        self._num_created += 1
        return self._num_created

    @staticmethod
    def _walk(root: Root) -> Iterator[Node]:
        """Every node below ``root``, parents first."""
        stack = list(root.children.values())
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())
