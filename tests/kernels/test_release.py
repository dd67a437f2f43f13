"""Which Triton an engine on a GPU takes: the one that the extra for GPUs asks for, or a newer one."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from rootlet.engine.build.backends import choose_backend
from rootlet.engine.config import EngineConfig
from rootlet.errors import ConfigError
from rootlet.kernels.gpu.release import FLOOR, check_triton


def use_release(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__=version))


@pytest.mark.parametrize("version", [f"{FLOOR}.0", "3.10.0", "4.0.0+git1a2b", "3.7.0rc1"])
def test_newer_releases_are_taken(monkeypatch, version):
    use_release(monkeypatch, version)
    check_triton()


@pytest.mark.parametrize("backend", ["auto", "torch", "triton"])
@pytest.mark.parametrize("version", ["3.2.0", "2.9.1", "3.5.1"])
def test_older_releases_are_refused_before_anything_is_loaded(monkeypatch, version, backend):
    use_release(monkeypatch, version)
    config = EngineConfig(model_path="none", attention_backend=backend)
    with pytest.raises(
        ConfigError, match=rf"triton 3\.6 or newer, found {version}.*pip install 'triton>=3\.6'"
    ):
        choose_backend(config, torch.device("cuda"))
    if backend != "triton":
        assert choose_backend(config, torch.device("cpu")) == "torch"


def test_a_missing_triton_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)  # what an import of it then raises is ImportError
    with pytest.raises(ConfigError, match=r"cannot be imported.*pip install 'triton>=3\.6"):
        check_triton()
