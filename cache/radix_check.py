"""What must always hold in the radix tree, checked by walking all of it (for tests and debugging)."""

from __future__ import annotations

from itertools import pairwise

from .leaf_queue import LeafQueue
from .page_pool import PagePool
from .radix_node import Node


def _require(condition: bool, node: Node, what: str) -> None:
    if not condition:
        raise AssertionError(f"Node {node.serial} ({node.start}:{node.end}): {what}.")


def check_nodes(nodes: list[Node], page_size: int, clock: int) -> None:
    """Structure of each node and its relation to its parent; ``nodes`` are all but the roots."""
    for node in nodes:
        parent = node.parent
        assert parent is not None, f"Node {node.serial} hangs below another but names no parent."
        _require(len(node.tokens) > 0, node, "holds no tokens")
        _require(len(node.pages) == -(-len(node.tokens) // page_size), node, "has the wrong number of pages")
        _require(node.start % page_size == 0, node, "does not begin on a page boundary")
        _require(node.start == parent.end, node, "does not begin where its parent ends")
        _require(parent.children.get(node.key(page_size)) is node, node, "is not found under its key")
        aligned = len(node.tokens) % page_size == 0
        _require(aligned or not node.children, node, "ends in a partly filled page but is no leaf")
        _require(aligned or not node.lock_count, node, "ends in a partly filled page but is locked")
        _require(node.lock_count >= 0, node, "has a negative lock count")
        _require(
            parent.parent is None or node.lock_count <= parent.lock_count, node, "is locked above its parent"
        )
        _require(node.last_access <= parent.last_access <= clock, node, "was used later than its parent")
        if page_size > 1:
            _require(node.child_keys == sorted(node.children), node, "has an unsorted list of child keys")
        for left, right in pairwise(node.child_keys):
            _require(
                not right.startswith(left), node, "has a child whose first page is covered by a sibling's"
            )


def check_ownership(nodes: list[Node], pool: PagePool) -> None:
    """Every page of the tree belongs to one node and is held in the pool."""
    seen: set[int] = set()
    for node in nodes:
        for page in node.pages:
            _require(page not in seen, node, f"shares page {page} with another node")
            _require(pool.refcount(page) >= 1, node, f"keeps page {page}, which is free")
            seen.add(page)


def check_queue(nodes: list[Node], leaves: LeafQueue) -> None:
    """Every candidate has exactly one entry in the queue, no older than the node itself may be."""
    queued = [id(node) for node in leaves]
    if len(queued) != len(set(queued)):
        raise AssertionError("A node is in the leaf queue twice.")
    entries = set(queued)
    for node in nodes:
        _require(node.queued == (id(node) in entries), node, "is wrong about being in the leaf queue")
        _require(node.queued or not node.is_candidate, node, "could be evicted but is not in the leaf queue")
