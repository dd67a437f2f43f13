"""Which build of the C kernels is chosen, and what becomes of one that cannot be loaded."""

from __future__ import annotations

import builtins
import importlib

import pytest
import torch

from rootlet.kernels import native


@pytest.fixture
def fresh():
    """The module's choice made anew in the test, and again after it."""
    native.load.cache_clear()
    yield native
    native.load.cache_clear()


def test_description_names_the_build():
    module = native.load()
    known = {None: "torch", "_cpu_v4": "c-avx512", "_cpu_v3": "c-avx2", "_cpu_base": "c-generic"}
    assert native.describe() == known[module and module.__name__.rpartition(".")[2]]


@pytest.mark.parametrize("capability", ["AVX512", "AVX2", "DEFAULT", "unheard of"])
def test_missing_builds_are_passed_over(fresh, monkeypatch, capability):
    asked = []

    def absent(name, package):
        asked.append(name)
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(importlib, "import_module", absent)
    assert fresh.load() is None
    assert fresh.describe() == "torch"
    assert asked[-1] == "._cpu_base"
    assert ("._cpu_v4" in asked) == (capability == "AVX512")


def test_broken_build_is_reported(fresh, monkeypatch, caplog):
    def broken(name, package):
        raise builtins.ImportError("undefined symbol: GOMP_parallel")

    monkeypatch.setattr(importlib, "import_module", broken)
    assert fresh.load() is None
    assert "undefined symbol" in caplog.text


def test_element_type():
    assert native.element_type(torch.zeros(1), torch.zeros(2)) == 0
    assert native.element_type(torch.zeros(1, dtype=torch.bfloat16)) == 1
    assert native.element_type(torch.zeros(1, dtype=torch.float16)) is None
    assert native.element_type(torch.zeros(1), torch.zeros(1, dtype=torch.bfloat16)) is None
    assert native.element_type(torch.zeros(1, device="meta")) is None
