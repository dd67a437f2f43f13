"""CUDA's virtual memory management (driver API, "Virtual Memory Management"), by ctypes.

Structures and numbers are those of ``cuda.h``; they have not changed since CUDA 10.2. torch's expandable
segments are made of the same calls, in the same order.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import ConfigError
from .arena import DriverError
from .device import at_rest, empty_cache, when_at_rest
from .host_copies import InlineCopies, StreamCopies

if TYPE_CHECKING:
    from .arena import Block

_OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY
_PINNED = 1  # CU_MEM_ALLOCATION_TYPE_PINNED
_ON_DEVICE = 1  # CU_MEM_LOCATION_TYPE_DEVICE
_READ_AND_WRITE = 3  # CU_MEM_ACCESS_FLAGS_PROT_READWRITE
_MINIMUM = 0  # CU_MEM_ALLOC_GRANULARITY_MINIMUM


class _Location(ctypes.Structure):
    """CUmemLocation."""

    _fields_ = (("type", ctypes.c_int), ("id", ctypes.c_int))


class _Flags(ctypes.Structure):
    """The part ``allocFlags`` of CUmemAllocationProp."""

    _fields_ = (
        ("compressionType", ctypes.c_ubyte),
        ("gpuDirectRDMACapable", ctypes.c_ubyte),
        ("usage", ctypes.c_ushort),
        ("reserved", ctypes.c_ubyte * 4),
    )


class _Properties(ctypes.Structure):
    """CUmemAllocationProp."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("requestedHandleTypes", ctypes.c_int),
        ("location", _Location),
        ("win32HandleMetaData", ctypes.c_void_p),
        ("allocFlags", _Flags),
    )


class _Access(ctypes.Structure):
    """CUmemAccessDesc."""

    _fields_ = (("location", _Location), ("flags", ctypes.c_int))


_ADDRESS = ctypes.c_uint64  # CUdeviceptr
_HANDLE = ctypes.c_uint64  # CUmemGenericAllocationHandle
_FLAGS = ctypes.c_uint64

# every function gives a CUresult
_CALLS = {
    "cuGetErrorName": (ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)),
    "cuMemGetAllocationGranularity": (
        ctypes.POINTER(ctypes.c_size_t),
        ctypes.POINTER(_Properties),
        ctypes.c_int,
    ),
    "cuMemAddressReserve": (
        ctypes.POINTER(_ADDRESS),
        ctypes.c_size_t,
        ctypes.c_size_t,
        _ADDRESS,
        _FLAGS,
    ),
    "cuMemAddressFree": (_ADDRESS, ctypes.c_size_t),
    "cuMemCreate": (ctypes.POINTER(_HANDLE), ctypes.c_size_t, ctypes.POINTER(_Properties), _FLAGS),
    "cuMemRelease": (_HANDLE,),
    "cuMemMap": (_ADDRESS, ctypes.c_size_t, ctypes.c_size_t, _HANDLE, _FLAGS),
    "cuMemUnmap": (_ADDRESS, ctypes.c_size_t),
    "cuMemSetAccess": (_ADDRESS, ctypes.c_size_t, ctypes.POINTER(_Access), ctypes.c_size_t),
}


class CudaDriver:
    """The driver of one GPU. Raises ConfigError where the system has none."""

    def __init__(self, device: torch.device) -> None:
        index = torch.cuda.current_device() if device.index is None else device.index
        self._device = torch.device("cuda", index)
        try:
            self._library = ctypes.CDLL("libcuda.so.1")  # the one that torch has loaded
        except OSError as error:
            raise ConfigError(
                f"enable_memory_saver=True needs the driver's libcuda.so.1: {error}."
            ) from error
        for name, arguments in _CALLS.items():
            function = getattr(self._library, name)
            function.argtypes, function.restype = arguments, ctypes.c_int
        where = _Location(_ON_DEVICE, index)
        self._properties = _Properties(type=_PINNED, location=where)
        self._access = _Access(where, _READ_AND_WRITE)

    @functools.cached_property
    def granularity(self) -> int:
        """2 MiB on the GPUs we know."""
        size = ctypes.c_size_t()
        self._call(
            "cuMemGetAllocationGranularity", ctypes.byref(size), ctypes.byref(self._properties), _MINIMUM
        )
        return size.value

    @property
    def piece(self) -> int:
        """1 GiB."""
        return 2**30

    def reserve(self, size: int) -> int:
        """cuMemAddressReserve, anywhere."""
        address = _ADDRESS()
        self._call("cuMemAddressReserve", ctypes.byref(address), size, 0, 0, 0)
        return address.value

    def map(self, address: int, size: int) -> None:
        """cuMemCreate, cuMemMap, cuMemRelease: the mapping alone keeps the memory then."""
        handle = _HANDLE()
        self._call("cuMemCreate", ctypes.byref(handle), size, ctypes.byref(self._properties), 0)
        try:
            self._call("cuMemMap", address, size, 0, handle, 0)
        finally:
            self._call("cuMemRelease", handle)

    def allow(self, address: int, size: int) -> None:
        """cuMemSetAccess for the GPU itself."""
        self._call("cuMemSetAccess", address, size, ctypes.byref(self._access), 1)

    def unmap(self, address: int, size: int) -> None:
        """cuMemUnmap."""
        self._call("cuMemUnmap", address, size)

    def free(self, address: int, size: int) -> None:
        """cuMemAddressFree."""
        self._call("cuMemAddressFree", address, size)

    def at_rest(self) -> contextlib.AbstractContextManager[None]:
        """That of the device."""
        return at_rest(self._device)

    def when_at_rest(self, action: Callable[[], None]) -> None:
        """That of the device."""
        when_at_rest(self._device, action)

    def trim(self) -> None:
        """Empty the cache of torch's allocator."""
        empty_cache()

    def free_memory(self) -> int:
        """cuMemGetInfo."""
        return torch.cuda.mem_get_info(self._device)[0]

    def tensor(self, block: Block) -> Tensor:
        """The memory itself, by the block's ``__cuda_array_interface__``."""
        tensor = torch.as_tensor(block, dtype=torch.uint8, device=self._device)
        if tensor.data_ptr() != block.range.address:
            raise AssertionError("torch has copied a block instead of taking it as it is.")
        return tensor

    def host_memory(self, num_bytes: int) -> Tensor:
        """Page-locked, unless the system locks no more."""
        try:
            return self._host_copies.host_memory(num_bytes)
        except ConfigError:
            return InlineCopies().host_memory(num_bytes)

    @functools.cached_property
    def _host_copies(self) -> StreamCopies:
        """What locks memory, and unlocks it when this driver goes."""
        return StreamCopies(self._device, 0)

    def _call(self, name: str, *arguments: object) -> None:
        result = getattr(self._library, name)(*arguments)
        if result:
            text = ctypes.c_char_p()
            self._library.cuGetErrorName(result, ctypes.byref(text))
            error = (text.value or b"an unknown error").decode()
            raise DriverError(f"{name}: {error} ({result})", is_out_of_memory=result == _OUT_OF_MEMORY)
