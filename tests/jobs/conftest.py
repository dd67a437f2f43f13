from __future__ import annotations

import pytest

from rootlet import run_jobs

from .fake_engine import FakeEngine
from .files import read, write
from .real_engine import shared_engine


@pytest.fixture
def job(tmp_path):
    """``job(lines, **options) -> (summary, records, engine)`` in a folder of its own."""

    def run(lines, *, engine=None, **options):
        engine = engine or FakeEngine()
        input_path = write(tmp_path / "in.jsonl", lines)
        output = tmp_path / "out.jsonl"
        summary = run_jobs(input_path, output, engine=engine, progress=False, **options)
        return summary, read(output), engine

    run.input, run.output, run.sidecar = (
        tmp_path / name for name in ("in.jsonl", "out.jsonl", "out.jsonl.job.json")
    )
    return run


@pytest.fixture
def real_engine(smollm2_gguf):
    """SmolLM2 in fp32, with an empty prefix cache."""
    engine = shared_engine(str(smollm2_gguf))
    engine.flush_cache()
    return engine
