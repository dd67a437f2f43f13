"""What a process holds: memory and threads."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
from pathlib import Path

MB = 2**20
FLAT = 20 * MB
"""So much may resident memory differ and still be called flat."""

GIVING_BACK = {
    "PYTHONMALLOC": "malloc",
    "MALLOC_MMAP_THRESHOLD_": str(MB // 8),
    "MALLOC_TRIM_THRESHOLD_": str(MB // 8),
}
"""An environment in which the allocators give free pages back, so that resident memory is what is held.

Python's own keeps a megabyte for each object that is left in it, and glibc's (``mallopt(3)``) raises the
limits above which it gives memory back, so both tell of the highest peak: of 24,000 fuzzed requests, 556 to
763 MB, while what was in use in them stayed at 258.
"""


def give_back() -> None:
    """Begin this process anew in the environment ``GIVING_BACK``, unless it is in it."""
    if not os.environ.items() >= GIVING_BACK.items():
        os.execve(sys.executable, sys.orig_argv, os.environ | GIVING_BACK)


def resident() -> int:
    """Resident memory in bytes, once what is free was given back, as far as the allocators do."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
