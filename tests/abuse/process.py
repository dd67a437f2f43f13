"""What a process holds: memory and threads."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
from pathlib import Path

MB = 2**20
FLAT = 20 * MB
"""So much may resident memory differ and still be called flat."""


def resident() -> int:
    """Resident memory in bytes, once what is free was given back."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
