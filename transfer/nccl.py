"""NCCL called directly, so that a peer that dies is an error here and not the end of this process.

torch's own NCCL group watches its work on a thread that takes the whole process down when a peer is gone or
late; only an environment variable stops that. Here the communicator is a non-blocking one
(``ncclConfig_t.blocking = 0``): every call returns at once, and who waits looks at the clock. It is
made as torch makes it: rank 0 leaves NCCL's unique id in the store under "0".
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import time
import weakref
from typing import Any

import torch

from ..errors import ConfigError, TransferError
from .waiting import Watch, interruptibly

_ID_BYTES = 128
_SUCCESS, _IN_PROGRESS = 0, 7  # ncclResult_t
_UINT8 = 1  # ncclDataType_t
_PAUSE = 0.0002  # seconds between two looks


class _UniqueId(ctypes.Structure):
    _fields_ = (("internal", ctypes.c_byte * _ID_BYTES),)


class _Config(ctypes.Structure):
    """ncclConfig_t as of NCCL 2.14; newer releases take their defaults for what lies behind ``size``."""

    _fields_ = (
        ("size", ctypes.c_size_t),
        ("magic", ctypes.c_uint),
        ("version", ctypes.c_uint),
        ("blocking", ctypes.c_int),
    )


class NcclLink:
    """One rank on one GPU. The communicator is made by the first broadcast, as torch's are."""

    def __init__(self, store: Any, rank: int, world_size: int, device: torch.device) -> None:
        self._nccl = _load()
        self._store = store
        self._rank = rank
        self._world_size = world_size
        self._device = torch.device(
            "cuda", torch.cuda.current_device() if device.index is None else device.index
        )
        self._comm = ctypes.c_void_p()
        self._abort = weakref.finalize(self, _abort, self._nccl, self._comm)

    def broadcast(self, tensor: torch.Tensor, watch: Watch) -> None:
        """In line on the current stream of this rank's GPU."""
        with torch.cuda.device(self._device):
            if not self._comm:
                self._connect(watch)
            data = tensor.to(self._device).contiguous()
            stream = torch.cuda.current_stream()
            pointer, count = ctypes.c_void_p(data.data_ptr()), ctypes.c_size_t(data.nbytes)
            self._check(
                self._nccl.ncclBroadcast(
                    pointer, pointer, count, _UINT8, 0, self._comm, ctypes.c_void_p(stream.cuda_stream)
                )
            )
            self._wait_until_ready(watch)
            done = stream.record_event()
            while not done.query():
                self._look()
                watch()
                time.sleep(_PAUSE)
            if data is not tensor and self._rank:
                tensor.copy_(data)

    def close(self) -> None:
        """Kernels that wait for a peer end, too."""
        self._abort()

    def _connect(self, watch: Watch) -> None:
        unique_id = _UniqueId()
        if self._rank == 0:
            self._check(self._nccl.ncclGetUniqueId(ctypes.byref(unique_id)))
            self._store.set("0", bytes(unique_id))
        else:
            try:
                sent = interruptibly(lambda: self._store.get("0"))
            except RuntimeError as error:
                raise TransferError(f"Rank 0 did not begin to broadcast: {error}") from error
            ctypes.memmove(ctypes.byref(unique_id), sent, _ID_BYTES)
        config = _Config(ctypes.sizeof(_Config), 0xCAFEBEEF, 21400, 0)
        self._check(
            self._nccl.ncclCommInitRankConfig(
                ctypes.byref(self._comm), self._world_size, unique_id, self._rank, ctypes.byref(config)
            )
        )
        self._wait_until_ready(watch)

    def _wait_until_ready(self, watch: Watch) -> None:
        while self._look() == _IN_PROGRESS:
            watch()
            time.sleep(_PAUSE)

    def _look(self) -> int:
        """The communicator's state; raises TransferError for an error of it."""
        state = ctypes.c_int(_SUCCESS)
        self._check(self._nccl.ncclCommGetAsyncError(self._comm, ctypes.byref(state)))
        self._check(state.value)
        return state.value

    def _check(self, result: int) -> None:
        if result in (_SUCCESS, _IN_PROGRESS):
            return
        texts = [self._nccl.ncclGetErrorString(result), self._nccl.ncclGetLastError(self._comm)]
        text = ": ".join(one.decode(errors="replace").strip() for one in texts if one)
        raise TransferError(
            f"NCCL failed: {text}. Every rank needs a GPU of its own: for a trainer on the engine's GPU use"
            " update_weights_from_ipc(), or backend='gloo'."
        )


def _abort(nccl: ctypes.CDLL, comm: ctypes.c_void_p) -> None:
    if comm:
        nccl.ncclCommAbort(comm)


@functools.cache
def _load() -> ctypes.CDLL:
    """The library that torch has loaded, or the system's."""
    with contextlib.suppress(OSError):
        nccl = ctypes.CDLL("libnccl.so.2")
        for name in ("ncclGetErrorString", "ncclGetLastError"):
            getattr(nccl, name).restype = ctypes.c_char_p
        nccl.ncclGetLastError.argtypes = [ctypes.c_void_p]
        nccl.ncclCommAbort.argtypes = [ctypes.c_void_p]
        nccl.ncclCommGetAsyncError.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
        return nccl
    raise ConfigError("libnccl.so.2 is not there: install torch with CUDA, or use backend='gloo'.")
