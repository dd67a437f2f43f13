"""Rows of figures: what ``h100.py`` and ``h100_serving.py`` measured, beside the peers' figures, on disk.

``h100.json`` holds the latest row of each (model, workload, metric), ``h100_history.jsonl`` every row ever
written. ``ratio`` above 1: we are ahead of the best peer.
"""

from __future__ import annotations

import datetime
import json
import statistics
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from h100_workloads import TARGETS, Target
from owner_shares import PARTS

RESULTS = Path(__file__).parent / "results"
UNITS = {
    "decode": "ms/token",
    "step": "ms",
    "output_throughput": "tok/s",
    **dict.fromkeys(["ttft_p50", "ttft_p99", "itl_p50", "itl_p99", "tpot_p50", "tpot_p99"], "ms"),
    **{f"owner_{part}": "%" for part in PARTS},
}


@dataclass(frozen=True)
class Figure:
    """A measured value, the single runs it comes from and the least it could be."""

    workload: str
    metric: str
    value: float
    runs: list[float]
    floor: float | None = None


def figure(workload: str, metric: str, runs: list[float], floor: float | None = None) -> Figure:
    """The median of some runs."""
    return Figure(workload, metric, statistics.median(runs), runs, floor)


class Results:
    """The rows so far, on disk after every workload: a run that is cut short loses one workload at most."""

    def __init__(self, folder: Path | None, context: dict[str, str]) -> None:
        self._folder = folder
        self._context = context
        self.rows: list[dict[str, Any]] = []

    def add(self, model: str, figures: list[Figure]) -> None:
        """Take figures over and write them."""
        rows = [self._row(model, figure) for figure in figures]
        self.rows += rows
        if self._folder is not None:
            write_rows(self._folder, rows)

    def write_trace(self, model: str, workload: str, summary: dict) -> None:
        """Write the summary of a trace beside the rows."""
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            record = {"model": model, "workload": workload, **self._context, **summary}
            path = self._folder / f"h100_trace_{model}_{workload}.json"
            path.write_text(json.dumps(record, indent=1) + "\n")

    def _row(self, model: str, figure: Figure) -> dict[str, Any]:
        target = TARGETS.get((model, figure.workload, figure.metric))
        unit = UNITS.get(figure.metric, "s")
        ratio = None
        if target is not None:
            ratio = target.best_peer / figure.value if unit != "tok/s" else figure.value / target.best_peer
        return {
            "model": model,
            "workload": figure.workload,
            "metric": figure.metric,
            "unit": unit,
            "value": figure.value,
            "best_peer": target.best_peer if target else None,
            "ratio": ratio,
            "floor": figure.floor,
            **self._context,
            "runs": figure.runs,
        }


def write_rows(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows: ``h100.json`` keeps the latest of each figure, the history all of them."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "h100.json"
    latest = json.loads(path.read_text()) if path.exists() else []
    by_key = {(row["model"], row["workload"], row["metric"]): row for row in latest + rows}
    path.write_text(json.dumps([by_key[key] for key in sorted(by_key)], indent=1) + "\n")
    with (folder / "h100_history.jsonl").open("a") as history:
        history.writelines(json.dumps(row) + "\n" for row in rows)


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table, with what must be reached and what is aimed at."""
    lines = [
        "| model | workload | metric | ours | best peer | ratio | must | aim | floor | runs |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for row in rows:
        target = TARGETS.get((row["model"], row["workload"], row["metric"])) or Target(0)
        runs = " ".join(number(run) for run in row["runs"])
        numbers = (row["value"], row["best_peer"], row["ratio"], target.must, target.aim, row["floor"])
        what = [row["model"], row["workload"], f"{row['metric']}, {row['unit']}"]
        cells = [*what, *map(number, numbers), runs]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def context(commit: str | None, device: torch.device) -> dict[str, str]:
    if commit is None:
        command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
        try:
            commit = subprocess.run(command, capture_output=True, text=True).stdout.strip()
        except OSError:
            commit = ""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "commit": commit or "unknown",
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
