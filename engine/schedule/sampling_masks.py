"""Which tokens filters and masks kept when a token was drawn: packed, for as long as nobody looks.

A step tells it as a bit per token of the vocabulary. Filters mostly keep a few dozen, a grammar inside a
string nearly all: so a mask is kept as ids while these take less room than the bits, which bounds it by an
eighth of a byte per token of the vocabulary, and is empty where everything was kept.
"""

from __future__ import annotations

import numpy as np

PackedMask = bytes
"""Nothing: all tokens are kept. Else ``IDS`` and ascending int32, or ``BITS`` and a bit per token."""

IDS, BITS = b"i", b"b"

_SPARSE = 8  # rows in which less than one word in so many has a bit are unpacked together


def pack_masks(words: np.ndarray, vocab_size: int) -> list[PackedMask]:
    """Masks of K drawn tokens.

    ``words`` [K, ceil(vocab_size / 32)] int32: bit ``t % 32`` of word ``t // 32`` says that token ``t`` is
    kept; those past the vocabulary are 0.
    """
    num_rows, width = words.shape
    used = words != 0
    sparse = used.sum(1) * _SPARSE < width
    packed: list[PackedMask] = [b""] * num_rows
    for row in np.flatnonzero(~sparse).tolist():
        bits = np.unpackbits(words[row].view(np.uint8), bitorder="little")
        packed[row] = _packed(np.flatnonzero(bits), words[row], vocab_size)
    rows, places = np.nonzero(used & sparse[:, None])
    bits = np.unpackbits(words[rows, places].view(np.uint8).reshape(-1, 4), axis=1, bitorder="little")
    at, bit = np.nonzero(bits)
    ids = places[at] * 32 + bit
    ends = np.searchsorted(rows[at], np.arange(num_rows), side="right").tolist()
    begin = 0
    for row, end in enumerate(ends):
        if sparse[row]:
            packed[row] = _packed(ids[begin:end], words[row], vocab_size)
        begin = end
    return packed


def _packed(ids: np.ndarray, words: np.ndarray, vocab_size: int) -> PackedMask:
    if len(ids) == vocab_size:
        return b""
    if len(ids) < len(words):
        return IDS + ids.astype(np.int32).tobytes()
    return BITS + words.tobytes()


def unpack_mask(packed: PackedMask) -> np.ndarray | None:
    """The kept tokens as ascending ids [N] int32; None if all are."""
    if not packed:
        return None
    if packed.startswith(IDS):
        return np.frombuffer(packed, np.int32, offset=1).copy()
    bits = np.unpackbits(np.frombuffer(packed, np.uint8, offset=1), bitorder="little")
    return np.flatnonzero(bits).astype(np.int32)
