"""The scripts in benchmarks/ import each other by name, as they do when they are run."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def script() -> Callable[[str], ModuleType]:
    """Import a script by its name."""

    def find(name: str) -> ModuleType:
        folder = str(Path(__file__).parents[2] / "benchmarks")
        sys.path.insert(0, folder)
        try:
            return importlib.import_module(name)
        finally:
            sys.path.remove(folder)

    return find
