"""The nodes of the radix tree: a run of tokens, the pages holding their KV, and the children after them.

Nothing here decides anything; :mod:`.radix_cache` does. Tokens are kept as ``array('i')``: four bytes each,
no object per token, and slices of them compare and hash in C (the keys of children are raw bytes).
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, insort
from collections.abc import Hashable, Sequence

TOKEN_BYTES = array("i").itemsize


def token_array(tokens: Sequence[int]) -> array:
    """``tokens`` as ``array('i')``; an array is returned as it is, anything else is copied.

    Comparing arrays is about twenty times faster than comparing lists, so whoever looks the same
    sequence up repeatedly should keep it in this form. Raises OverflowError outside int32.
    """
    if isinstance(tokens, array) and tokens.typecode == "i":
        return tokens
    return array("i", tokens)


def common_prefix(stored: array, tokens: Sequence[int], start: int, end: int) -> int:
    """How many of ``tokens[start:end]`` equal the beginning of ``stored``.

    Gallops: slices of growing length are compared whole, and the first unequal one is bisected. A list is
    converted slice by slice, so a mismatch near the beginning of a long one costs little.
    """
    total = min(len(stored), end - start)
    done, step = 0, 64
    while done < total:
        size = min(step, total - done)
        ours = stored[done : done + size]
        theirs = token_array(tokens[start + done : start + done + size])
        if ours != theirs:
            return done + _first_difference(ours, theirs)
        done += size
        step *= 4
    return total


def _first_difference(left: array, right: array) -> int:
    """Index of the first unequal element of two unequal arrays of one length, by bisection."""
    low, high = 0, len(left)  # equal before ``low``, unequal somewhere in low:high
    while high - low > 1:
        middle = (low + high) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle
    return low


def _common_bytes(left: bytes, right: bytes) -> int:
    """Length of the common prefix of two short byte strings, by bisection."""
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


class Node:
    """One edge of the tree with what hangs below it.

    Fields: ``tokens`` (array of int32), ``pages`` (ids, ``ceil(len(tokens) / page_size)`` of them), ``start``
    (tokens above this node), ``parent`` (None for a root and for a node no longer in a tree), ``lock_count``,
    ``last_access`` (logical clock), ``serial`` (order of creation), ``queued`` (has an entry in the leaf
    queue).

    ``children`` maps the raw bytes of a child's first page of tokens (fewer for a leaf that is nothing but a
    partly filled page) to the child. ``child_keys`` holds the same keys sorted: the key sharing the longest
    prefix with any string is a neighbour of its place in sorted order, so the search for a partly matching
    page stays logarithmic however many children differ inside their first page. With one token per page
    there are no partial matches and the list stays empty.
    """

    __slots__ = (
        "child_keys",
        "children",
        "last_access",
        "lock_count",
        "pages",
        "parent",
        "queued",
        "serial",
        "start",
        "tokens",
    )

    def __init__(self, tokens: array, pages: list[int], start: int, serial: int) -> None:
        self.tokens = tokens
        self.pages = pages
        self.start = start
        self.serial = serial
        self.parent: Node | None = None
        self.children: dict[bytes, Node] = {}
        self.child_keys: list[bytes] = []
        self.lock_count = 0
        self.last_access = 0
        self.queued = False

    @property
    def end(self) -> int:
        """Tokens from the root to the end of this node."""
        return self.start + len(self.tokens)

    @property
    def is_candidate(self) -> bool:
        """Whether this node may be evicted now: in a tree, not a root, a leaf, and locked by nobody."""
        return self.parent is not None and not self.children and not self.lock_count

    def key(self, page_size: int) -> bytes:
        """The key under which the parent finds this node."""
        return self.tokens[:page_size].tobytes()

    def add_child(self, child: Node, page_size: int) -> None:
        """Hang ``child`` below this node; no child with its key may exist."""
        key = child.key(page_size)
        child.parent = self
        self.children[key] = child
        if page_size > 1:
            insort(self.child_keys, key)

    def remove_child(self, child: Node, page_size: int) -> None:
        """Unhang ``child``, which must have its first page still."""
        key = child.key(page_size)
        child.parent = None
        del self.children[key]
        if page_size > 1:
            del self.child_keys[bisect_left(self.child_keys, key)]

    def closest_child(self, query: bytes) -> tuple[Node, int] | None:
        """The child whose first page shares the most tokens with ``query``, and how many.

        ``query`` is at most one page of tokens. Among equals the neighbour that sorts at or after the query
        wins, so the choice depends on the tree's contents only. None if no child shares even one token.
        """
        keys = self.child_keys
        place = bisect_left(keys, query)
        best_key, best = b"", 0
        for key in keys[max(place - 1, 0) : place + 1]:
            shared = _common_bytes(key, query) // TOKEN_BYTES
            if shared and shared >= best:
                best_key, best = key, shared
        return (self.children[best_key], best) if best else None

    def partial_leaf_within(self, query: bytes) -> Node | None:
        """The child that is nothing but a partly filled page whose tokens ``query`` begins with, if any.

        No child's key is a prefix of a sibling's, so it can only be the one sorted just before the query.
        """
        place = bisect_left(self.child_keys, query)
        if place and query.startswith(self.child_keys[place - 1]):
            return self.children[self.child_keys[place - 1]]
        return None

    def split(self, at: int, serial: int, page_size: int) -> Node:
        """Cut this node after ``at`` tokens (a page boundary inside it) and return the new upper part.

        The upper part takes this node's place below the parent and its lock and clock; this object stays the
        lower part, so that whoever refers to it still means the same last token.
        """
        parent = self.parent
        assert parent is not None  # a root has no tokens to cut
        head = Node(self.tokens[:at], self.pages[: at // page_size], self.start, serial)
        head.lock_count = self.lock_count
        head.last_access = self.last_access
        head.parent = parent
        parent.children[head.key(page_size)] = head  # same key as before: child_keys need no change
        self.tokens = self.tokens[at:]
        self.pages = self.pages[at // page_size :]
        self.start += at
        head.add_child(self, page_size)
        return head


class Root(Node):
    """The empty node on top of one namespace; remembers which, so that it can go when it is empty."""

    __slots__ = ("namespace",)

    def __init__(self, namespace: Hashable) -> None:
        super().__init__(array("i"), [], 0, 0)
        self.namespace = namespace
