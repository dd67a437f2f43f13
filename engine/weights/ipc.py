"""Buffers of a trainer in another process: their handles are read field by field, never unpickled freely."""

from __future__ import annotations

import io
import os
import pickle
import stat
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.multiprocessing import reductions

from ...errors import WeightsError, short
from ...transfer.ipc import CUDA_FIELDS, map_file

_FORMS = (
    "rootlet.ipc_handle(buffer), the pair of torch.multiprocessing.reductions.reduce_tensor(buffer), or"
    " either pickled"
)
_BEHIND_DEVICE = 7  # arguments of rebuild_cuda_tensor up to the number of the GPU


def open_handle(handle: Any) -> torch.Tensor:
    """The buffer [bytes] uint8 that a handle names: see :mod:`rootlet.transfer.ipc`.

    A tensor, as a queue of torch.multiprocessing gives it, is its own handle. Raises WeightsError for what is
    no handle and for a buffer that cannot be opened here.
    """
    if isinstance(handle, torch.Tensor):
        return handle
    if isinstance(handle, (bytes, bytearray)):
        handle = _unpickle(bytes(handle))
    if isinstance(handle, (tuple, list)):
        handle = _read_pair(handle)
    if not isinstance(handle, Mapping) or handle.get("device") not in ("cpu", "cuda"):
        raise WeightsError(f"A handle is {_FORMS}; got {short(handle)}.")
    return _open_cuda(handle) if handle["device"] == "cuda" else _open_cpu(handle)


# ---- host memory ---------------------------------------------------------------------------------------


def _open_cpu(handle: Mapping[str, Any]) -> torch.Tensor:
    pid, number, offset, nbytes = (_field(handle, name, int) for name in ("pid", "fd", "offset", "nbytes"))
    try:
        file = os.open(f"/proc/{pid}/fd/{number}", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise WeightsError(
            f"The buffer of process {pid} cannot be opened: {error}. The trainer must be alive, keep the"
            " buffer until this call returns, run as the same user and see the same /proc (Linux; in"
            " containers: one PID namespace)."
        ) from error
    try:
        found = os.fstat(file)  # reading a mapping behind the end of its file would end this process
        if not stat.S_ISREG(found.st_mode) or offset + nbytes > found.st_size:
            raise WeightsError(
                f"The handle names {nbytes} bytes at {offset} of file descriptor {number} of process {pid},"
                f" which has {found.st_size}: the buffer is no longer there."
            )
        return map_file(file, offset + nbytes)[offset:]
    finally:
        os.close(file)


# ---- CUDA ----------------------------------------------------------------------------------------------


def _open_cuda(handle: Mapping[str, Any]) -> torch.Tensor:
    fields = [_field(handle, name, kind) for name, kind in CUDA_FIELDS]
    offset, nbytes, memory_nbytes = (_field(handle, n, int) for n in ("offset", "nbytes", "memory_nbytes"))
    if offset + nbytes > memory_nbytes:
        raise WeightsError(f"The handle names {nbytes} bytes at {offset} of {memory_nbytes}.")
    if handle.get("pid") == os.getpid() or handle["memory"] in reductions.shared_cache:
        raise WeightsError(
            "The buffer is this process's own, and CUDA opens no handle where it was made: pass the tensors"
            " to update_weights(), or the buffer to weight_update().add_bucket()."
        )
    index = _find_gpu(handle)
    try:
        rebuild: Callable[..., torch.Tensor] = reductions.rebuild_cuda_tensor
        return rebuild(
            torch.Tensor, (nbytes,), (1,), offset, torch.UntypedStorage, torch.uint8, index,
            *fields[:3], False, *fields[3:],
        )  # fmt: skip
    except RuntimeError as error:
        raise WeightsError(
            f"The trainer's buffer on GPU {index} cannot be opened: {str(error).partition(chr(10))[0]}. The"
            " trainer must be alive and keep the buffer until this call returns; make a new handle for each"
            " call. If the trainer's PYTORCH_CUDA_ALLOC_CONF has expandable_segments:True, both processes"
            " need the same user, one PID namespace and a kernel with pidfd_getfd (5.6): leave it out,"
            " or send the weights by update_weights_from_distributed()."
        ) from error


def _find_gpu(handle: Mapping[str, Any]) -> int:
    """The number that a GPU has here; a pair of torch's has only that of the trainer."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if "uuid" not in handle:
        index = _field(handle, "index", int)
        if index < count:
            return index
        raise WeightsError(
            f"The buffer is on the trainer's GPU {index}, and this process sees {count} GPUs: make the handle"
            " by rootlet.ipc_handle(), which names GPUs by their uuid."
        )
    uuids = [str(torch.cuda.get_device_properties(one).uuid) for one in range(count)]
    if handle["uuid"] in uuids:
        return uuids.index(handle["uuid"])
    raise WeightsError(
        f"The buffer is on the GPU {short(handle['uuid'])}, and this process sees"
        f" {', '.join(uuids) or 'none'}: add it to CUDA_VISIBLE_DEVICES, or send the"
        " weights by update_weights_from_distributed()."
    )


def _read_pair(pair: Any) -> dict[str, Any]:
    """Of reduce_tensor: a function, which is compared and never called, and its arguments."""
    if len(pair) != 2 or pair[0] not in (reductions.rebuild_cuda_tensor, _no_tensor):
        raise WeightsError(f"A handle is {_FORMS} of a CUDA tensor; got {short(pair)}.")
    arguments = pair[1]
    expected = _BEHIND_DEVICE + len(CUDA_FIELDS) + 1  # requires_grad
    if not isinstance(arguments, (tuple, list)) or len(arguments) != expected:
        raise WeightsError(
            "The handle was made by a torch of another release: use the same in both processes."
        )
    _, size, stride, offset, _, dtype, index, *fields = arguments
    if dtype is not torch.uint8 or len(size) != 1 or tuple(stride) != (1,):
        raise WeightsError(f"A bucket is one contiguous tensor [bytes] of uint8, got {dtype} {list(size)}.")
    del fields[3]
    names = (name for name, _ in CUDA_FIELDS)
    return {"device": "cuda", "index": index, "offset": offset, "nbytes": size[0], **dict(zip(names, fields))}


def _field(handle: Mapping[str, Any], name: str, kind: type) -> Any:
    value = handle.get(name)
    if not isinstance(value, kind) or (isinstance(value, int) and (type(value) is not kind or value < 0)):
        raise WeightsError(
            f"The handle's {name!r} must be {kind.__name__}, got {short(value)}: use {_FORMS}."
        )
    return value


# ---- pickles -------------------------------------------------------------------------------------------


def _no_tensor(*arguments: Any) -> tuple[Any, tuple[Any, ...]]:
    """Stands in for rebuild_cuda_tensor, so that unpickling opens nothing: gives the pair."""
    return _no_tensor, arguments


_KNOWN = {
    ("torch.multiprocessing.reductions", "rebuild_cuda_tensor"): _no_tensor,
    ("torch", "Tensor"): None,
    ("torch._tensor", "Tensor"): None,
    ("torch.storage", "UntypedStorage"): None,
    ("torch.storage", "TypedStorage"): None,
    ("torch", "Size"): tuple,
    ("torch", "uint8"): torch.uint8,
}


class _Unpickler(pickle.Unpickler):
    """Knows what a handle is made of and nothing else: a pickle can call only what it finds."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"{module}.{name} is no part of a handle")
        return _KNOWN[module, name]


def _unpickle(data: bytes) -> Any:
    try:
        return _Unpickler(io.BytesIO(data)).load()
    except Exception as error:  # a damaged pickle raises anything
        raise WeightsError(f"The pickled handle cannot be read: {error}. A handle is {_FORMS}.") from error
