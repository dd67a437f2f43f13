"""The locks agree with pyproject.toml: whoever changes a requirement renews them (``make lock``)."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import rootlet
from rootlet.kernels.gpu.release import FLOOR

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(rootlet.__file__).parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ON_A_GPU = PROJECT["project"]["optional-dependencies"]["cuda"]
LOCKS = ("constraints-cpu.txt", "constraints-cuda.txt", "constraints-oldest.txt")
# every Python we say we support, as the markers of a lock see it
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


def requirements(*, cuda: bool, oldest: bool = False) -> list[Requirement]:
    """What the tests need, on a CPU or with the extra for GPUs; our own extras are written out in it.

    ``oldest``: with the oldest releases of all, which are too old for TRL.
    """
    project = PROJECT["project"]
    left_out = {"bench", *(() if cuda else ("cuda",)), *(("trl", "dev-trl") if oldest else ())}
    extras = {name: lines for name, lines in project["optional-dependencies"].items() if name not in left_out}
    build = PROJECT["build-system"]["requires"]
    lines = [*project["dependencies"], *itertools.chain(*extras.values()), *build]
    return [requirement for requirement in map(Requirement, lines) if requirement.name != project["name"]]


def pinned(lock: str, python: str) -> dict[str, Version]:
    """The one version of each package that ``lock`` has for a Python on Linux."""
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.1",
        "sys_platform": "linux",
        "platform_machine": "x86_64",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
    }
    versions: dict[str, Version] = {}
    for line in (ROOT / lock).read_text().splitlines():
        if line.startswith("#"):
            continue
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate(environment):
            [pin] = requirement.specifier
            assert pin.operator == "=="
            assert canonicalize_name(requirement.name) not in versions
            versions[canonicalize_name(requirement.name)] = Version(pin.version)
    return versions


def applies(requirement: Requirement, python: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"python_version": python})


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_has_a_version_of_every_requirement_that_it_allows(lock, python):
    versions = pinned(lock, python)
    for requirement in requirements(cuda="cuda" in lock, oldest="oldest" in lock):
        if applies(requirement, python):
            version = versions[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version), f"{requirement} but {version}"


def test_the_oldest_releases_are_the_floors():
    versions = pinned("constraints-oldest.txt", "3.10")
    for requirement in requirements(cuda=False, oldest=True):
        [floor] = [pin.version for pin in requirement.specifier if pin.operator in (">=", "==")]
        assert versions[canonicalize_name(requirement.name)] == Version(floor), requirement


def test_where_the_floors_differ_on_a_gpu_they_are_higher():
    """The extra for GPUs may ask for more of a package than the rest does, never for less."""
    plain = {r.name: r for r in requirements(cuda=False)}
    for requirement in map(Requirement, ON_A_GPU):
        [floor] = [Version(pin.version) for pin in requirement.specifier if pin.operator == ">="]
        assert requirement.name not in plain or plain[requirement.name].specifier.contains(floor)


def test_engines_refuse_a_triton_older_than_the_extra_for_gpus():
    [triton] = [requirement for requirement in map(Requirement, ON_A_GPU) if requirement.name == "triton"]
    assert str(triton.specifier) == f">={FLOOR}"
