"""The example of a trainer and an engine in processes of their own runs, and their weights stay the same."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import rootlet


def test_the_example():
    """Two trainers and an engine, in processes of their own."""
    script = Path(rootlet.__file__).parent / "examples" / "weights_over_processes.py"
    command = [sys.executable, str(script), "--steps", "3"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert run.returncode == 0, run.stderr
    found = re.findall(
        r"step (\d): reward 0\.\d+, log-probabilities (\S+) apart, by weights (\d)\n", run.stdout
    )
    assert [(step, version) for step, _, version in found] == [("0", "0"), ("1", "1"), ("2", "2")]
    assert all(float(apart) < 1e-5 for _, apart, _ in found)
