"""How busy the GPU is in steady decode: a trace of some twenty steps and the gaps between its kernels."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

_CATEGORIES = ("kernel", "gpu_memcpy", "gpu_memset")  # of a chrome trace: what occupies the device
_TRIM = 0.15  # of the trace, at both ends: starting and stopping the profiler holds the host up
_SHOWN = 40  # kernel names
_SETTLED = 64  # tokens per request after which the last prompt is long computed
_LONGEST = 8192  # tokens; at half a millisecond per step still four seconds


def trace_decode(engine: Any, prompts: list[list[int]], *, steps: int = 20) -> dict:
    """Trace ``steps`` decode steps of ``prompts`` running side by side; the summary of :func:`summarise`.

    The steps run on the engine's own thread; the profiler records the kernels of all threads. Outputs are as
    long as the KV pool allows, and aborted afterwards; RuntimeError if one ends during the trace. Adds
    ``ms_per_step`` (without the profiler) and ``ms_per_step_traced``: where the two differ much, the
    profiler made the gaps. A kernel that was launched early and waits for its predecessor counts as busy.
    """
    if not torch.cuda.is_available():
        raise RuntimeError("A trace of the GPU needs a CUDA GPU; torch sees none.")
    info, length = engine.get_server_info(), max(map(len, prompts))
    room = min(int(0.8 * info["max_total_num_tokens"]) // len(prompts), info["context_length"])
    params = {"temperature": 0, "max_new_tokens": min(room - length, _LONGEST), "ignore_eos": True}
    with _profiler():  # the first use loads CUPTI, which takes seconds
        engine.generate(input_ids=prompts[0][:16], sampling_params=params | {"max_new_tokens": 4})
    before = engine.stats().num_generated_tokens
    handles = [engine.submit(input_ids=p, sampling_params=params, stream=False) for p in prompts]
    try:
        while engine.stats().num_generated_tokens - before < _SETTLED * len(prompts):
            time.sleep(0.02)
        _, per_step = _watch(engine, 0.25)
        with _profiler() as profiler:
            num_steps, per_step_traced = _watch(engine, steps * per_step / (1 - 2 * _TRIM))
        if engine.stats().num_running != len(prompts):
            raise RuntimeError("Requests ended (or waited) during the trace; trace fewer steps.")
    finally:
        for handle in handles:
            handle.abort()
    summary = summarise(_device_events(profiler))
    return {
        "batch_size": len(prompts),
        "input_length": len(prompts[0]),
        "ms_per_step": per_step * 1e3,
        "ms_per_step_traced": per_step_traced * 1e3,
        "steps_traced": num_steps,
        "steps": summary["window_ms"] / (per_step_traced * 1e3),
        **summary,
    }


def summarise(events: Iterable[dict], trim: float = _TRIM) -> dict:
    """Idle time of the device between the first and the last kernel.

    ``events`` are those of a chrome trace with ``cat``, ``name``, ``ts`` and ``dur`` (microseconds). ``trim``
    of their span is left out at both ends. ``idle_percent`` counts kernels alone as work,
    ``idle_percent_with_copies`` copies and fills too; both are of the time that no interval covers.
    Raises ValueError without kernels.
    """
    events = sorted(events, key=lambda event: event["ts"])
    kernels = [event for event in events if event["cat"] == "kernel"]
    if not kernels:
        raise ValueError("The trace holds no kernel; was a model running on the GPU meanwhile?")
    first = kernels[0]["ts"]
    span = max(event["ts"] + event["dur"] for event in kernels) - first
    begin, end = first + trim * span, first + (1 - trim) * span
    busy, gaps = _union(kernels, begin, end)
    busy_with_copies, _ = _union(events, begin, end)
    totals: dict[str, list[float]] = {}
    for event in kernels:
        inside = min(event["ts"] + event["dur"], end) - max(event["ts"], begin)
        if inside > 0:
            total = totals.setdefault(event["name"], [0, 0.0])
            total[0] += 1
            total[1] += inside
    ranked = sorted(totals.items(), key=lambda item: -item[1][1])
    return {
        "window_ms": (end - begin) / 1e3,
        "idle_percent": 100 * (1 - busy / (end - begin)),
        "idle_percent_with_copies": 100 * (1 - busy_with_copies / (end - begin)),
        "num_gaps": len(gaps),
        "longest_gaps_us": [round(gap, 2) for gap in sorted(gaps, reverse=True)[:5]],
        "num_kernels": sum(count for count, _ in totals.values()),
        "kernels": [
            {"name": name[:160], "count": count, "us": round(us, 1), "percent": round(100 * us / busy, 2)}
            for name, (count, us) in ranked[:_SHOWN]
        ],
    }


def _union(events: list[dict], begin: float, end: float) -> tuple[float, list[float]]:
    """Time in ``[begin, end]`` that the intervals cover together, and the gaps between them."""
    covered, gaps, reached = 0.0, [], begin
    for event in events:
        start, stop = max(event["ts"], begin), min(event["ts"] + event["dur"], end)
        if stop <= reached:
            continue
        if start > reached:
            gaps.append(start - reached)
        covered += stop - max(start, reached)
        reached = stop
    if reached < end:
        gaps.append(end - reached)
    return covered, gaps


def _profiler() -> torch.profiler.profile:
    return torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])


def _watch(engine: Any, seconds: float) -> tuple[int, float]:
    """Leave the engine alone for a while; how many steps it ran and seconds per step."""
    steps, start = engine.stats().num_steps, time.perf_counter()
    time.sleep(seconds)
    done, elapsed = engine.stats().num_steps - steps, time.perf_counter() - start
    if not done:
        raise RuntimeError(f"The engine ran no step in {elapsed:.2f} s.")
    return done, elapsed / done


def _device_events(profiler: torch.profiler.profile) -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    return [event for event in events if event.get("ph") == "X" and event.get("cat") in _CATEGORIES]
