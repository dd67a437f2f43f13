"""Which prefixes are being computed right now, so that nobody computes them a second time.

A request that shares a prefix with one whose prefill is under way does better to wait: once the other's
pages are in the tree it starts from there. Prefixes are recognised by chained hashes of fixed chunks
(a chunk's hash covers everything before it), so the question costs one set lookup per candidate.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .request import Request

# Sharing less than one chunk is not worth a step of waiting.
CHUNK_TOKENS = 32


class PrefixIndex:
    """The chunk hashes of all prefills under way."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self._members: dict[int, tuple[int, ...]] = {}

    def __len__(self) -> int:
        """Prefills under way."""
        return len(self._members)

    def add(self, request: Request) -> None:
        """Announce that ``request`` is computing its prompt."""
        if id(request) not in self._members:
            hashes = self._members[id(request)] = _hashes(request)
            self._counts.update(hashes)

    def discard(self, request: Request) -> None:
        """Forget ``request``: its prefix is in the tree, or it stopped running."""
        for value in self._members.pop(id(request), ()):
            self._counts[value] -= 1
            if not self._counts[value]:
                del self._counts[value]

    def covers_more(self, request: Request, num_matched: int) -> bool:
        """True when a prefill under way shares at least one whole chunk beyond ``num_matched`` tokens."""
        if not self._members:
            return False
        chunk = -(-num_matched // CHUNK_TOKENS)  # the first chunk that starts at or after the match
        hashes = _hashes(request)
        # the chunk must be one this request may take from the cache at all
        return (
            chunk < len(hashes)
            and (chunk + 1) * CHUNK_TOKENS <= request.match_limit
            and (hashes[chunk] in self._counts)
        )


def _hashes(request: Request) -> tuple[int, ...]:
    """Chained hashes of the request's prompt, computed once."""
    if request.prefix_hashes is None:
        ids, value, hashes = request.key_ids, hash(request.namespace), []
        for end in range(CHUNK_TOKENS, request.num_prompt_tokens + 1, CHUNK_TOKENS):
            value = hash((value, ids[end - CHUNK_TOKENS : end].tobytes()))
            hashes.append(value)
        request.prefix_hashes = tuple(hashes)
    return request.prefix_hashes
