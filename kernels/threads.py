"""How many threads a step computes on: a team for the C kernels, a limit for torch's own loops.

Both hold for the calling thread while a team is bound to it, and for no other: what the host set by
``torch.set_num_threads`` stays. torch reads its number from OpenMP, which keeps one per thread, and MKL can
keep one per thread too.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import math
import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch

from .native import load

logger = logging.getLogger("rootlet.kernels")

MAX_THREADS = 512  # as in csrc/team.h


class Team:
    """The threads that compute for one engine; ``num_threads`` of them, the one that waits for them included.

    Its helpers start with the first work and end with :meth:`close`, or when nobody refers to the team. They
    take no signals. In a forked child a team works on the calling thread alone.

    Args:
        num_threads: 1 to 512.
        torch_threads: threads of torch's own loops; may be changed between two uses. More than one are for
            models that torch multiplies; they then stand in for the helpers, which would get no core.
        kernels: the C extension whose kernels share their work; default: the one in use.

    Raises ValueError for another number.
    """

    def __init__(self, num_threads: int, torch_threads: int = 1, kernels: ModuleType | None = None) -> None:
        if not 1 <= num_threads <= MAX_THREADS:
            raise ValueError(f"A team has 1 to {MAX_THREADS} threads, got {num_threads}.")
        self.num_threads = num_threads
        self.torch_threads = torch_threads
        self._kernels = load() if kernels is None else kernels
        self._address = 0
        if self._kernels is not None:
            self._address = self._kernels.team_open(num_threads)
            self._finalizer = weakref.finalize(self, self._kernels.team_close, self._address)

    @contextlib.contextmanager
    def bound(self) -> Iterator[None]:
        """Have the calling thread compute with this team; then as before."""
        limits = _thread_limits()
        before = limits.set(self.torch_threads)
        openmp = limits.openmp_team if self.torch_threads > 1 else (0, 0)
        kernels = self._kernels
        bound = (0, 0, 0)
        if kernels is not None and self._address:
            bound = kernels.team_bind(self._address, *openmp)
        try:
            yield
        finally:
            if kernels is not None and self._address:
                kernels.team_bind(*bound)
            limits.restore(before)

    @property
    def stalled(self) -> float:
        """Seconds that were spent waiting for helpers that the system kept off their cores."""
        if self._kernels is None or not self._address:
            return 0.0
        return self._kernels.team_stalled(self._address) * 1e-9

    def close(self) -> None:
        """End the helpers. Idempotent; not while the team is bound."""
        if self._address:
            self._address = 0
            self._finalizer()


def usable_cores() -> int:
    """Cores this process may use: those of its affinity mask, within the quota of its control group."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return max(1, math.ceil(min(cores, _quota())))


def default_threads() -> int:
    """As many threads as torch would take on this thread, at most one per usable core."""
    return min(torch.get_num_threads(), usable_cores(), MAX_THREADS)


def _quota(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float:
    """Cores' worth of time that the control group grants, infinite where there is no limit to be read."""
    folders = {root}
    with contextlib.suppress(OSError, IndexError):
        # a line is "number:controllers:path"; the second version has one line, without controllers
        folders.update(root / line.split(":", 2)[2].lstrip("/") for line in own.read_text().splitlines())
    granted = [math.inf]
    for folder in folders:
        try:
            quota, period = (folder / "cpu.max").read_text().split()
        except (OSError, ValueError):
            continue
        if quota != "max":
            granted.append(int(quota) / int(period))
    with contextlib.suppress(OSError, ValueError):  # the first version
        microseconds = int((root / "cpu" / "cpu.cfs_quota_us").read_text())
        if microseconds > 0:
            granted.append(microseconds / int((root / "cpu" / "cpu.cfs_period_us").read_text()))
    return min(granted)


class _Limits(NamedTuple):
    """The two numbers of a thread: OpenMP's and MKL's (0: MKL follows its own for all threads)."""

    openmp: int
    mkl: int


class _ThreadLimits:
    """Sets how many threads torch's loops take on the calling thread, where the libraries are found."""

    def __init__(self) -> None:
        self._openmp = _find("omp_set_num_threads")
        self._mkl = _find("MKL_Set_Num_Threads_Local")
        # addresses of what has work done by OpenMP's threads
        parallel, thread_num = _find("GOMP_parallel"), _find("omp_get_thread_num")
        self.openmp_team = (0, 0)
        if parallel is not None and thread_num is not None:
            self.openmp_team = (_address(parallel), _address(thread_num))
        if self._openmp is None:
            logger.debug("No OpenMP runtime of torch was found; its loops take as many threads as ever.")

    def set(self, num_threads: int) -> _Limits | None:
        """Limit the calling thread; None says that it was so before."""
        openmp = torch.get_num_threads()  # first: a thread's first call takes over the host's setting
        if openmp == num_threads or self._openmp is None:
            return None
        self._openmp(num_threads)
        return _Limits(openmp, 0 if self._mkl is None else self._mkl(num_threads))

    def restore(self, before: _Limits | None) -> None:
        """Undo :meth:`set`, of which ``before`` is the result."""
        if before is not None and self._openmp is not None:
            self._openmp(before.openmp)
            if self._mkl is not None:
                self._mkl(before.mkl)


@functools.cache
def _thread_limits() -> _ThreadLimits:
    return _ThreadLimits()


def _find(name: str) -> ctypes._NamedFuncPointer | None:
    """A function ``int -> int`` of the libraries that torch has loaded: visible to all, or torch's own."""
    libraries = sorted(Path(torch.__file__).parent.glob("lib/libtorch_cpu.*"))
    for path in (None, *map(str, libraries)):
        try:
            function = getattr(ctypes.CDLL(path), name)
        except (OSError, AttributeError):
            continue
        function.argtypes, function.restype = [ctypes.c_int], ctypes.c_int
        return function
    return None


def _address(function: ctypes._NamedFuncPointer) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0
