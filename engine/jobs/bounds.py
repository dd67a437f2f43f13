"""How much one line may be, settled on its bytes before anything reads it as JSON.

A parser recurses with the depth of a text and builds an object for every value, so what a line would cost
is looked up first: where it may nest deeply or hold many values, its bytes outside of strings are counted.
"""

from __future__ import annotations

import numpy as np

MAX_LINE_BYTES = 64 << 20
MAX_DEPTH = 100  # arrays and objects inside each other
MAX_VALUES = 2_000_000  # values of one line: a prompt of token ids, in a context of a million
MAX_DIGITS = 1000  # of one number; reading digits takes quadratic time
MAX_ID_CHARS = 1024

_DIGITS = bytes.maketrans(b"123456789", b"000000000")
_LONG_NUMBER = b"0" * (MAX_DIGITS + 1)


def refusal(data: bytes) -> str | None:
    """A sentence saying why a line of so many, so deep or so long values is not read, or None."""
    maybe_deep = data.count(b"[") + data.count(b"{") > MAX_DEPTH
    maybe_many = data.count(b",") >= MAX_VALUES
    maybe_long = len(data) > MAX_DIGITS and _LONG_NUMBER in data.translate(_DIGITS)
    if not (maybe_deep or maybe_many or maybe_long):
        return None
    bare = _outside_strings(data)
    opened = (bare == ord("[")) | (bare == ord("{"))
    closed = (bare == ord("]")) | (bare == ord("}"))
    depth = int(np.cumsum(opened.astype(np.int8) - closed, dtype=np.int32).max(initial=0))
    if depth > MAX_DEPTH:
        return f"it nests {depth} levels deep; at most {MAX_DEPTH} are read"
    commas = int(np.count_nonzero(bare == ord(",")))
    if commas >= MAX_VALUES:
        return f"it has more than {commas:,} values; at most {MAX_VALUES:,} are read"
    if _LONG_NUMBER in bare.tobytes().translate(_DIGITS):
        return f"it has a number of more than {MAX_DIGITS:,} digits"
    return None


def _outside_strings(data: bytes) -> np.ndarray:
    """[n] uint8: the bytes of a JSON text without its strings (their opening quotes stay)."""
    if b"\\" in data:
        data = data.replace(b"\\\\", b"").replace(
            b'\\"', b""
        )  # pairs first: a quote behind them is a real one
    codes = np.frombuffer(data, dtype=np.uint8)
    return codes[~np.logical_xor.accumulate(codes == ord('"'))]
