"""One engine on the real small model for all tests of jobs and commands: building it takes seconds."""

from __future__ import annotations

from functools import lru_cache

from rootlet import Engine

OPTIONS = {"dtype": "float32", "max_total_tokens": 8192}


@lru_cache(maxsize=1)
def shared_engine(path) -> Engine:
    """The engine; nobody closes it."""
    return Engine(path, **OPTIONS)
