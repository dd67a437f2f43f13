"""A driver of a device that is not there: it checks every call, and refuses where it is told to."""

from __future__ import annotations

import contextlib

import torch

from rootlet.kernels.arena import DriverError

GRANULE = 64


class FakeDriver:
    """Addresses in granules, pieces of two; ``room`` granules of memory at most.

    ``reserved`` and ``mapped``: what is there, by first address. ``refuse``: the name of a call to fail, and
    how many of them still work. What is unmapped loses its values: tensors are filled with 0xEE.
    """

    def __init__(self, room=10**6, granule=GRANULE):
        self.granularity, self.piece = granule, 2 * granule
        self.room = room * granule
        self.reserved: dict[int, int] = {}
        self.mapped: dict[int, int] = {}
        self.allowed: set[int] = set()
        self.tensors: dict[int, torch.Tensor] = {}
        self.refuse: tuple[str, int] | None = None
        self.calls: list[str] = []
        self.cached = 0  # bytes that trim() finds
        self.is_resting = False
        self.next = 4096 * granule

    @property
    def taken(self) -> int:
        return sum(self.mapped.values())

    def _call(self, name):
        self.calls.append(name)
        if self.refuse is not None and self.refuse[0] == name:
            left = self.refuse[1]
            self.refuse = (name, left - 1) if left else None
            if not left:
                raise DriverError(f"{name}: CUDA_ERROR_UNKNOWN (999)")

    def reserve(self, size):
        self._call("reserve")
        assert size
        assert size % self.granularity == 0
        address, self.next = self.next, self.next + size + self.granularity
        self.reserved[address] = size
        return address

    def map(self, address, size):
        assert self.is_resting
        self._call("map")
        assert size <= self.piece
        assert any(a <= address and address + size <= a + s for a, s in self.reserved.items())
        assert all(address + size <= a or a + s <= address for a, s in self.mapped.items())
        if self.taken + self.cached + size > self.room:
            raise DriverError("cuMemCreate: CUDA_ERROR_OUT_OF_MEMORY (2)", is_out_of_memory=True)
        self.mapped[address] = size

    def allow(self, address, size):
        self._call("allow")
        pieces = {a: s for a, s in self.mapped.items() if address <= a < address + size}
        assert sum(pieces.values()) == size
        self.allowed |= pieces.keys()

    def unmap(self, address, size):
        assert self.is_resting
        self._call("unmap")
        assert self.mapped.pop(address) == size
        self.allowed.discard(address)
        for start, tensor in self.tensors.items():
            if start <= address < start + self.reserved[start]:
                tensor[address - start : address - start + size] = 0xEE

    def free(self, address, size):
        assert self.is_resting
        self._call("free")
        assert not any(address <= a < address + size for a in self.mapped)
        assert self.reserved.pop(address) == size
        self.tensors.pop(address, None)

    @contextlib.contextmanager
    def at_rest(self):
        assert not self.is_resting
        self.is_resting = True
        try:
            yield
        finally:
            self.is_resting = False

    def when_at_rest(self, action):
        with self.at_rest():
            action()

    def trim(self):
        assert self.is_resting
        self._call("trim")
        self.cached = 0

    def free_memory(self):
        return self.room - self.taken

    def tensor(self, block):
        """Memory of the host, as long as the block's; like a real one it keeps the block alive."""
        data = block.__cuda_array_interface__
        assert data["data"][0] in self.reserved
        tensor = torch.full(data["shape"], 0xEE, dtype=torch.uint8)
        tensor.block = block
        self.tensors[block.range.address] = tensor.detach()  # shares memory, not the block
        return tensor

    def host_memory(self, num_bytes):
        self._call("host_memory")
        return torch.empty(num_bytes, dtype=torch.uint8)
