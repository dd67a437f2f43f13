"""The benchmark of the host's share runs, on whatever the core expects of a runner today."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from rootlet.engine.schedule.invariants import check_invariants


@pytest.fixture(scope="module")
def host() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "host.py"
    spec = importlib.util.spec_from_file_location("host_benchmark", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "options", [[], ["--layout", "--stream", "--check-stop", "--page-size", "3"]], ids=str
)
def test_every_row_decodes_in_every_step(host, options, monkeypatch, capsys):
    monkeypatch.setattr(host, "WINDOW", 4)
    cores, tokens = [], []

    def decoding_core(*args):
        cores.append(host_core(*args))
        tokens.append([r.num_output_tokens for r in cores[-1].scheduler.running])
        return cores[-1]

    host_core = host.decoding_core
    monkeypatch.setattr(host, "decoding_core", decoding_core)
    host.main(["--rows", "1,5", "--windows", "2", *options])
    heading, *lines = capsys.readouterr().out.splitlines()
    assert "us/step" in heading
    assert [int(line.split()[0]) for line in lines] == [1, 5]
    assert all(float(number) > 0 for line in lines for number in line.split()[1:])
    for core, before in zip(cores, tokens, strict=True):
        check_invariants(core.scheduler)
        assert [r.num_output_tokens - n for r, n in zip(core.scheduler.running, before, strict=True)] == [
            8
        ] * len(before)
