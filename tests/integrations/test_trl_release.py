"""Which releases of TRL are taken; no TRL is needed for it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import rootlet
from rootlet.errors import MissingDependencyError


@pytest.fixture
def check_release(monkeypatch):
    """``check_release(version)``, None for no TRL, by loading the file alone."""
    path = Path(rootlet.__file__).parent / "integrations" / "trl" / "release.py"
    spec = importlib.util.spec_from_file_location("rootlet.integrations.trl.release", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def check(version):
        def installed(name):
            assert name == "trl"
            if version is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return version

        monkeypatch.setattr(importlib.metadata, "version", installed)
        module.check_release()

    return check


@pytest.mark.parametrize("version", ["1.16.0", "1.17.0.dev0", "1.30"])
def test_taken(check_release, version):
    check_release(version)


@pytest.mark.parametrize("version", ["1.15.9", "0.29.0", "2.0.0", "2", "unknown"])
def test_refused(check_release, version):
    with pytest.raises(MissingDependencyError, match=rf"got {version}.*pip install 'trl>=1.16,<2'"):
        check_release(version)


def test_missing(check_release):
    with pytest.raises(MissingDependencyError, match=r"needs TRL.*pip install 'trl>=1.16,<2'"):
        check_release(None)


def test_importing_the_module_checks_before_it_imports_trl():
    code = (
        "import importlib.metadata as m, sys\n"
        "m.version = lambda name: '0.9'\n"
        "try:\n    import rootlet.integrations.trl\n"
        "except ImportError as error:\n"
        "    print(type(error).__name__, 'trl' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["MissingDependencyError", "False", "False"]
