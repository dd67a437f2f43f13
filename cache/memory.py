"""Memory of devices: how much is free now, and zeroed tensors that cost nothing until they are used."""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import torch

Allocate: TypeAlias = Callable[[tuple[int, ...], torch.dtype, torch.device], torch.Tensor]
"""Makes a contiguous tensor of zeros: ``(shape, dtype, device)``. :func:`zeros` is one."""

_NO_LIMIT = 1 << 60  # cgroup v1 writes a huge number where v2 writes "max"


def free_memory(device: torch.device) -> int | None:
    """Bytes that could be allocated on ``device`` now; None if the system does not tell.

    CUDA: what the driver reports free plus what torch's allocator has cached without using it (it gives
    such memory back when a request does not fit otherwise; a closed engine's cache is found there).
    Everything else shares the host's memory.
    """
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return free_host_memory()


def free_host_memory(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes this process could still use: the least of the machine's and of every enclosing cgroup's.

    The machine's is MemAvailable of ``/proc/meminfo`` (proc_meminfo(5)). A cgroup's is its limit minus its
    use, where file pages that can be dropped (``inactive_file``) do not count as used; both cgroup versions
    are read (kernel documents admin-guide/cgroup-v2 and cgroup-v1/memory). None without such files.
    """
    candidates = [_mem_available(proc / "meminfo")]
    for line in _read(proc / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            names = ("memory.max", "memory.current", "inactive_file")
            candidates += _cgroup_room(cgroup, path, names)
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            candidates += _cgroup_room(cgroup / "memory", path, names)
    known = [value for value in candidates if value is not None]
    return max(0, min(known)) if known else None


def _mem_available(path: Path) -> int | None:
    for line in _read(path).splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return None


def _cgroup_room(mount: Path, path: str, names: tuple[str, str, str]) -> list[int | None]:
    """Room left in the cgroup at ``path`` and in each of its ancestors.

    Inside a container the path is often that of the host, and only the mount's own files exist: a missing
    folder gives None.
    """
    limit_name, usage_name, reclaimable_name = names
    room: list[int | None] = []
    folder = mount / path.lstrip("/")
    for place in (folder, *folder.parents):
        limit, usage = _read(place / limit_name).strip(), _read(place / usage_name).strip()
        if limit.isdigit() and usage.isdigit() and int(limit) < _NO_LIMIT:
            stat = dict(line.split()[:2] for line in _read(place / "memory.stat").splitlines())
            room.append(int(limit) - max(0, int(usage) - int(stat.get(reclaimable_name, 0))))
        if place == mount:
            break
    return room


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A contiguous tensor of zeros. On the CPU its memory is mapped, not touched.

    The operating system provides zeroed memory page by page on first write, so a large table that is used a
    little costs a little. Raises what the system raises if even the address space is refused (OSError), or
    torch.OutOfMemoryError on a GPU.
    """
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or size == 0:
        return torch.zeros(shape, dtype=dtype, device=device)
    # private, as the default would share the memory with forked children
    flags = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    return torch.frombuffer(mmap.mmap(-1, size, **flags), dtype=torch.uint8).view(dtype).view(shape)
