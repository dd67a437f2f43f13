"""Reading how much memory is free from (made-up) /proc and cgroup trees, and lazily zeroed tensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rootlet.cache.memory import free_host_memory, zeros

MIB = 1 << 20


@pytest.fixture
def system(tmp_path: Path) -> Path:
    """A machine with 1000 MiB available and no cgroups."""
    write(tmp_path / "proc" / "meminfo", "MemTotal: 4096000 kB\nMemFree: 10 kB\nMemAvailable: 1024000 kB\n")
    return tmp_path


def write(path: Path, text: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


def free(system: Path) -> int | None:
    return free_host_memory(system / "proc", system / "cgroup")


def v2(folder: Path, limit: object, usage: int, inactive: int = 0) -> None:
    write(folder / "memory.max", limit)
    write(folder / "memory.current", usage)
    write(folder / "memory.stat", f"anon 5\ninactive_file {inactive}")


def v1(folder: Path, limit: object, usage: int, inactive: int = 0) -> None:
    write(folder / "memory.limit_in_bytes", limit)
    write(folder / "memory.usage_in_bytes", usage)
    write(folder / "memory.stat", f"inactive_file 7\ntotal_inactive_file {inactive}")


def test_without_cgroups_the_machine_counts(system: Path) -> None:
    assert free(system) == 1000 * MIB


def test_nothing_known(tmp_path: Path) -> None:
    assert free(tmp_path) is None


def test_v2_limit_counts_droppable_file_pages_as_free(system: Path) -> None:
    write(system / "proc" / "self" / "cgroup", "0::/user/job")
    v2(system / "cgroup" / "user" / "job", 500 * MIB, 300 * MIB, 100 * MIB)
    assert free(system) == 300 * MIB


def test_v2_the_tightest_ancestor_counts(system: Path) -> None:
    write(system / "proc" / "self" / "cgroup", "0::/user/job")
    v2(system / "cgroup" / "user" / "job", "max", 30 * MIB)
    v2(system / "cgroup" / "user", 100 * MIB, 60 * MIB)
    assert free(system) == 40 * MIB


def test_v2_inside_a_container_the_path_is_the_hosts(system: Path) -> None:
    write(system / "proc" / "self" / "cgroup", "0::/docker/abc")
    v2(system / "cgroup", 100 * MIB, 70 * MIB)
    assert free(system) == 30 * MIB


def test_v1_beside_other_controllers(system: Path) -> None:
    write(system / "proc" / "self" / "cgroup", "12:cpu,cpuacct:/x\n4:memory:/job:1\n1:name=systemd:/y")
    v1(system / "cgroup" / "memory" / "job:1", 200 * MIB, 150 * MIB, 20 * MIB)
    v1(system / "cgroup" / "memory", 9223372036854771712, 900 * MIB)
    assert free(system) == 70 * MIB


def test_more_used_than_allowed_is_nothing_free(system: Path) -> None:
    write(system / "proc" / "self" / "cgroup", "0::/")
    v2(system / "cgroup", 100 * MIB, 120 * MIB)
    assert free(system) == 0


def test_this_machine_has_memory() -> None:
    assert free_host_memory() > MIB


@pytest.mark.parametrize("dtype", [torch.int32, torch.bfloat16, torch.float8_e4m3fn, torch.int64])
@pytest.mark.parametrize("shape", [(3, 5), (1,), (0, 4)])
def test_zeros_are_ordinary_writable_tensors(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = zeros(shape, dtype, torch.device("cpu"))
    assert (tensor.shape, tensor.dtype, tensor.is_contiguous()) == (shape, dtype, True)
    assert not tensor.float().any()
    tensor.fill_(1)
    assert (tensor.float() == 1).all()
