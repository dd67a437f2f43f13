"""Seeds: where they come from, and the hash that turns (seed, position) into random bits.

The hash is the output function of SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number
generators", OOPSLA 2014). A seed is first scrambled into a *key*; position ``p`` of the stream is then
``mix64(key + (p + 1) * GOLDEN)``, so it can be computed alone, in any order, on any device.
This module is the host side, in Python integers; ``draw.py`` holds the same function for tensors.
"""

from __future__ import annotations

import os
import random

MASK64 = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15
MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
SHIFTS = (30, 27, 31)
_MASK63 = 2**63 - 1
_DERIVE = 0xD1B54A32D192ED03  # another odd step than GOLDEN: derived seeds are no outputs of a token stream


def mix64(value: int) -> int:
    """Scramble a 64-bit integer, one to one (the finalizer of SplitMix64)."""
    value &= MASK64
    value = (value ^ (value >> SHIFTS[0])) * MULTIPLIERS[0] & MASK64
    value = (value ^ (value >> SHIFTS[1])) * MULTIPLIERS[1] & MASK64
    return value ^ (value >> SHIFTS[2])


def stream_key(seed: int) -> int:
    """The start of a seed's stream, as a *signed* 64-bit integer (what an int64 tensor holds).

    Scrambling the seed first keeps the streams of nearby seeds from being shifts of one another.
    """
    key = mix64(seed + GOLDEN)
    return key - 2**64 if key > _MASK63 else key


def derive_seed(base: int, index: int) -> int:
    """Seed of sample ``index`` of a request with ``n > 1``: ``base`` itself for 0, else a hash of both.

    So the first of n samples equals the only one of ``n=1``. Result in [0, 2**63 - 1].
    """
    return base if index == 0 else mix64(mix64(base) + index * _DERIVE) & _MASK63


def random_seed(source: random.Random | None = None) -> int:
    """A fresh seed in [0, 2**63 - 1] from ``source``, or from the operating system if there is none.

    Never touches the global generator of :mod:`random`, which belongs to the host program.
    """
    if source is not None:
        return source.getrandbits(63)
    return int.from_bytes(os.urandom(8), "little") & _MASK63
