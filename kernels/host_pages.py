"""Tensors in host memory whose pages are given back to the system while the tensors stay.

``madvise(MADV_DONTNEED)`` on Linux: private anonymous memory reads as zeros from then on and costs nothing
until it is written again, at the same addresses (madvise(2)). Where that is not so, nobody is to call it:
:data:`GIVES_PAGES_BACK`.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from ..errors import DeviceMemoryError

GIVES_PAGES_BACK = sys.platform == "linux"
"""Whether :class:`HostPages` can give anything back here."""


class HostPages:
    """The whole pages inside the tensors that ``tensors()`` names: contiguous ones, that share no bytes.

    What shares a page with something else, at either end of a tensor, stays.
    """

    def __init__(self, tensors: Callable[[], Iterable[Tensor]]) -> None:
        self._tensors = tensors
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        self._libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)

    def held(self) -> int:
        """Bytes that are in memory now (mincore(2)); what was never written costs nothing."""
        return sum(map(self._resident, self._ranges()))

    def release(self, *, keep: bool = False) -> int:
        """Give the pages back; how many bytes that were. Raises DeviceMemoryError if the system refuses.

        ``keep``: leave them, for there is no better place for what is in host memory already.
        """
        if keep:
            return 0
        before = self.held()
        for start, size in self._ranges():
            if self._libc.madvise(start, size, mmap.MADV_DONTNEED):
                error = os.strerror(ctypes.get_errno())
                raise DeviceMemoryError(
                    f"The system does not take back {size} bytes: {error} (madvise). Memory that mlock() has"
                    " locked has to be unlocked first."
                )
        return before - self.held()

    def resume(self) -> int:
        """Pages come back as they are written: none does now."""
        return 0

    def close(self) -> None:
        """Let go of the tensors."""
        self._tensors = tuple

    def _ranges(self) -> Iterator[tuple[int, int]]:
        """Address and size of the pages in each tensor."""
        page = mmap.PAGESIZE
        for tensor in self._tensors():
            if not (tensor.is_cpu and tensor.is_contiguous()):
                raise AssertionError(
                    f"A tensor on {tensor.device} of strides {tensor.stride()} has no pages."
                )
            start = -(-tensor.data_ptr() // page) * page
            size = (tensor.data_ptr() + tensor.nbytes) // page * page - start
            if size > 0:
                yield start, size

    def _resident(self, pages: tuple[int, int]) -> int:
        start, size = pages
        states = torch.empty(size // mmap.PAGESIZE, dtype=torch.uint8, device="cpu")
        if self._libc.mincore(start, size, states.data_ptr()):
            return size  # unknown: as if all were
        return int(states.bitwise_and_(1).count_nonzero()) * mmap.PAGESIZE
