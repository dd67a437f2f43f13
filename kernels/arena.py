"""Device memory whose addresses stay while what is behind them comes and goes.

Recorded graphs hold addresses, and so do layers: memory that is given to somebody else for a while has to
come back where it was. A driver lets addresses be reserved apart from memory::

    reserve   |·······························|      addresses, of nobody else from now on
    back      |[piece 0  ][piece 1  ][piece 2 ]|      memory behind them
    unback    |·······························|      the memory is the system's, the addresses are ours

There is no hook in torch's allocator: tensors are views of such a range, and know nothing of it.
"""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..errors import DeviceMemoryError


class DriverError(Exception):
    """The driver refused; the message has its call and its name of the error."""

    def __init__(self, message: str, *, is_out_of_memory: bool = False) -> None:
        super().__init__(message)
        self.is_out_of_memory = is_out_of_memory


class Driver(Protocol):
    """What reserves addresses of one device and puts memory behind them. All raise DriverError."""

    @property
    def granularity(self) -> int:
        """Sizes and addresses are multiples of this many bytes."""

    @property
    def piece(self) -> int:
        """Bytes to ask for at a time, a multiple of that: few calls, and none for a whole model at once."""

    def reserve(self, size: int) -> int:
        """The first of ``size`` addresses that nobody has."""

    def map(self, address: int, size: int) -> None:
        """Put new memory behind some of them; nothing is left of it if that fails."""

    def allow(self, address: int, size: int) -> None:
        """Let kernels read and write there, after the mapping."""

    def unmap(self, address: int, size: int) -> None:
        """Give back what one :meth:`map` put there."""

    def free(self, address: int, size: int) -> None:
        """Give up addresses that have no memory."""

    def at_rest(self) -> contextlib.AbstractContextManager[None]:
        """A block that begins when the device is done, for all of the above but :meth:`reserve`."""

    def when_at_rest(self, action: Callable[[], None]) -> None:
        """``action()`` in such a block, now or soon; never waits."""

    def trim(self) -> None:
        """Have the process give back memory that it has without using it; in a block of :meth:`at_rest`."""

    def free_memory(self) -> int:
        """Bytes that are free on the device."""

    def tensor(self, block: Block) -> Tensor:
        """uint8 ``[block.num_bytes]`` at the block's address; keeps the block alive."""

    def host_memory(self, num_bytes: int) -> Tensor:
        """uint8 ``[num_bytes]`` of the host for copies; page-locked if the system allows."""


class Range:
    """Reserved addresses, and the pieces of memory behind them: all or none."""

    def __init__(self, driver: Driver, num_bytes: int) -> None:
        self._driver = driver
        granularity = driver.granularity
        self.size = -(-num_bytes // granularity) * granularity
        self._pieces: list[tuple[int, int]] = []
        self.address = driver.reserve(self.size)

    @property
    def is_backed(self) -> bool:
        """Whether there is memory."""
        return bool(self._pieces)

    def back(self) -> None:
        """Put memory there; none is left if that fails."""
        try:
            for start in range(0, self.size, self._driver.piece):
                piece = (self.address + start, min(self._driver.piece, self.size - start))
                self._driver.map(*piece)
                self._pieces.append(piece)
            self._driver.allow(self.address, self.size)
        except BaseException:
            self.unback()
            raise

    def unback(self) -> None:
        """Give the memory back; what is left after an error can be tried again."""
        while self._pieces:
            self._driver.unmap(*self._pieces[-1])
            self._pieces.pop()

    def free(self) -> None:
        """Give up memory and addresses."""
        self.unback()
        self._driver.free(self.address, self.size)


class Block:
    """A range as long as anybody has a tensor in it: the last one takes it along."""

    def __init__(self, driver: Driver, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        self.range = Range(driver, num_bytes)
        self._freed = weakref.finalize(self, driver.when_at_rest, self.range.free)
        self._freed.atexit = False  # the process ends and takes its memory along

    def free(self) -> None:
        """Give it up at once, before anybody has a tensor in it."""
        self._freed.detach()
        self.range.free()

    @property
    def __cuda_array_interface__(self) -> dict[str, object]:
        """The block as bytes, by version 3 of the protocol (Numba's documentation describes it)."""
        return {
            "shape": (self.num_bytes,),
            "typestr": "|u1",
            "data": (self.range.address, False),
            "strides": None,
            "version": 3,
        }


class Arena:
    """Blocks that are released and taken back together. ``zeroed``: memory that is new is all zeros.

    Not for several threads at once. What raises DeviceMemoryError can be tried again.
    """

    def __init__(self, driver: Driver, *, zeroed: bool = False) -> None:
        self._driver = driver
        self._zeroed = zeroed
        self._blocks: list[tuple[Block, Tensor]] = []
        self._copies: list[Tensor] = []  # of the first blocks, in host memory: locking it takes seconds
        self._has_copies = False  # they hold what the blocks are to hold again

    def bytes(self, num_bytes: int) -> Tensor:
        """uint8 ``[num_bytes]`` in a block of its own. Raises DeviceMemoryError if so much is not free."""
        if not num_bytes:
            raise AssertionError("A block has at least a byte.")
        # ordinary memory whatever mode the caller is in, as in WeightTable.load
        with self._named(num_bytes), self._driver.at_rest(), torch.inference_mode(False):
            block = Block(self._driver, num_bytes)
            try:
                self._back([block.range])
            except BaseException:
                block.free()
                raise
            tensor = self._driver.tensor(block)
            if self._zeroed:
                tensor.zero_()
        self._blocks.append((block, tensor))
        return tensor

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:  # noqa: ARG002
        """:meth:`bytes` as a contiguous tensor of that shape, on the arena's own device."""
        with torch.inference_mode(False):
            return self.bytes(math.prod(shape) * dtype.itemsize).view(dtype).view(shape)

    def held(self) -> int:
        """Bytes of device memory, in whole pages of the driver's."""
        return sum(block.range.size for block, _ in self._blocks if block.range.is_backed)

    def release(self, *, keep: bool = False) -> int:
        """Give the memory back, after what was enqueued; how many bytes that were.

        ``keep``: the values come back with :meth:`resume`; they are copied to host memory.
        """
        before = self.held()
        if not before:
            return 0
        if keep:
            for block, _ in self._blocks[len(self._copies) :]:
                self._copies.append(self._driver.host_memory(block.num_bytes))
        with self._named(before), self._driver.at_rest():
            if keep:
                for (_, tensor), copy in zip(self._blocks, self._copies, strict=True):
                    copy.copy_(tensor)
                self._has_copies = True
            for block, _ in self._blocks:
                block.range.unback()
        return before - self.held()

    def resume(self) -> int:
        """Take memory where it was, zeros or what was kept or anything; how many bytes that are.

        Raises DeviceMemoryError if so much is not free: then none is taken.
        """
        lacking = [(block, tensor) for block, tensor in self._blocks if not block.range.is_backed]
        num_bytes = sum(block.range.size for block, _ in lacking)
        if not lacking:
            return 0
        with self._named(num_bytes), self._driver.at_rest(), torch.inference_mode(False):
            self._back([block.range for block, _ in lacking])
            if self._zeroed:
                for _, tensor in lacking:
                    tensor.zero_()
            if self._has_copies:
                for (_, tensor), copy in zip(self._blocks, self._copies):  # blocks may be newer
                    tensor.copy_(copy)
        self._has_copies = False
        with self._driver.at_rest():  # whoever computes next does so on a stream of its own
            return num_bytes

    def close(self) -> None:
        """Let go of everything: what nobody else has a tensor of is given back."""
        self._blocks, self._copies = [], []

    def _back(self, ranges: Sequence[Range]) -> None:
        """Memory for all of them or none; what the process only caches is given back if need be."""
        try:
            self._try_to_back(ranges)
        except DriverError as error:
            if not error.is_out_of_memory:
                raise
            self._driver.trim()
            self._try_to_back(ranges)

    def _try_to_back(self, ranges: Sequence[Range]) -> None:
        backed: list[Range] = []
        try:
            for one in ranges:
                one.back()
                backed.append(one)
        except BaseException:
            for one in backed:
                one.unback()
            raise

    @contextlib.contextmanager
    def _named(self, num_bytes: int) -> Iterator[None]:
        """Errors of the driver become ours."""
        try:
            yield
        except DriverError as error:
            raise DeviceMemoryError(
                f"The GPU refuses: {error}, for {num_bytes} bytes, of which {self._driver.free_memory()} are"
                " free. Have others free memory, the same process included, and try again."
            ) from error
