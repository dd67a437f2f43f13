"""Start-up of a fresh process: until the engine is ready, and until its first token."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_SCRIPT = """
import json, sys, time
begin = time.monotonic()
import rootlet
engine = rootlet.Engine(sys.argv[1], **json.loads(sys.argv[2]))
ready = time.monotonic()
prompt = json.loads(sys.argv[3])
engine.generate(input_ids=prompt, sampling_params={"temperature": 0, "max_new_tokens": 1, "ignore_eos": True})
print(json.dumps([begin, ready, time.monotonic()]))
engine.close()
"""
# where compilers keep what they made; all empty for a cold start
_CACHES = ("TRITON_CACHE_DIR", "CUDA_CACHE_PATH", "FLASHINFER_WORKSPACE_BASE", "TORCHINDUCTOR_CACHE_DIR")


def time_starts(folder: Path, options: dict, prompt: list[int], repeats: int) -> dict[str, list[float]]:
    """Seconds by metric, one cold start and ``repeats`` with what the cold one compiled.

    ``start``: from the process's start to the end of the constructor, imports included. ``first_generate``:
    the call for one token that follows. ``first_token``: both together. Files of the Python
    installation are in the page cache either way. Raises RuntimeError with what it said if it fails.
    """
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as caches:
        environment = os.environ | {name: str(Path(caches) / name.lower()) for name in _CACHES}
        for kind in ["cold"] + ["second"] * repeats:
            start, first = _start(folder, options, prompt, environment)
            seconds.setdefault(f"start_{kind}", []).append(start)
            seconds.setdefault(f"first_generate_{kind}", []).append(first)
            seconds.setdefault(f"first_token_{kind}", []).append(start + first)
    return seconds


def _start(folder: Path, options: dict, prompt: list[int], environment: dict) -> tuple[float, float]:
    command = [sys.executable, "-c", _SCRIPT, str(folder), json.dumps(options), json.dumps(prompt)]
    start = time.monotonic()  # one clock for all processes
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"The fresh process failed with {done.returncode}:\n{done.stderr}")
    begin, ready, first = json.loads(done.stdout.splitlines()[-1])
    parts = (("interpreter", begin - start), ("to ready", ready - begin), ("first token", first - ready))
    print("      " + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in parts), flush=True)
    return ready - start, first - ready
