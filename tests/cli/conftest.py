from __future__ import annotations

import pytest

from ..jobs.real_engine import shared_engine


class Lent:
    """Stands for a newly built engine where a command would build one; the loading is what is saved."""

    def __init__(self, engine):
        self.engine = engine
        self.built_with = []

    def __call__(self, model, **options):
        self.built_with.append((model, options))
        return self

    def __enter__(self):
        return self.engine

    def __exit__(self, *exc_info):
        return None


@pytest.fixture
def lent_engine(smollm2_gguf, monkeypatch):
    """SmolLM2 in fp32; every command gets this one engine."""
    lent = Lent(shared_engine(str(smollm2_gguf)))
    monkeypatch.setattr("rootlet.engine.engine.Engine", lent)
    return lent
