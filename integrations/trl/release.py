"""Which releases of TRL this works with. Imports none of it."""

from __future__ import annotations

import importlib.metadata
import re

from ...errors import MissingDependencyError

OLDEST = (1, 16)
"""Older ones have other names in the places that :class:`~.generation.RootletGeneration` uses."""
NEXT_MAJOR = 2
INSTALL = "pip install 'trl>=1.16,<2'"


def check_release() -> None:
    """Raise MissingDependencyError unless TRL is installed, in a release from 1.16 to below 2."""
    try:
        installed = importlib.metadata.version("trl")
    except importlib.metadata.PackageNotFoundError:
        raise MissingDependencyError(
            f"rootlet.integrations.trl needs TRL, which needs Python 3.11 or newer: {INSTALL}"
        ) from None
    numbers = tuple(int(number) for number in re.findall(r"\d+", installed)[:2])
    if not OLDEST <= numbers < (NEXT_MAJOR,):
        raise MissingDependencyError(
            f"rootlet.integrations.trl uses names of TRL that change between releases: it works with 1.16 and"
            f" newer releases below 2, got {installed}. {INSTALL}"
        )
