"""Jobs killed by SIGKILL at random moments and resumed: the output is that of a job nobody killed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

from tqdm import tqdm

from .report import Report
from .tiny_model import write_model

NUM_LINES = 150
KILLS_PER_JOB = 5
MAX_SURVIVED = 20  # jobs in a row
# deterministic: after a kill other requests run side by side, which must not show in the last bit
FLAGS = ["--dtype", "float32", "--max-total-tokens", "4096", "--device", "cpu", "--deterministic"]
FLAGS += ["--no-progress", "--log-level", "error", "--max-in-flight", "8", "--seed", "1"]


def lines(rng: Random) -> list[str]:
    """Lines of every form, some of them wrong."""
    made: list[Any] = []
    for i in range(NUM_LINES):
        params = {
            "max_new_tokens": rng.randrange(4, 60),
            "temperature": rng.choice([0, 1]),
            "ignore_eos": True,
        }
        url, body = (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": f"Hi {i}"}], "max_tokens": 9},
        )
        made.append(
            rng.choice(
                [
                    {"id": i, "prompt": f"a quick look at {i}", "sampling_params": params},
                    {"prompt": f"pages of {i}", "sampling_params": params | {"n": 2}, "return_logprob": True},
                    {"id": f"{i}", "messages": body["messages"], "sampling_params": params},
                    {"custom_id": f"c{i}", "method": "POST", "url": url, "body": body | {"n": 2}},
                    {"id": i, "prompt": f"{i} is ", "sampling_params": {"regex": "[0-9]{3}"}},
                    {"id": i, "prompt": "", "metadata": "an error"},
                    {"id": i, "sampling_params": 5},
                ]
            )
        )
    return [json.dumps(line) for line in made] + ["{", "[]", "  "]


def answers(output: Path) -> dict[str, Any]:
    """The records by their lines, without what depends on time or on the cache."""
    records = [json.loads(line) for line in output.read_bytes().splitlines()]
    kept = {}
    for record in records:
        name = json.dumps([record.get("id"), record.get("custom_id"), record.get("index")])
        if name in kept:
            raise AssertionError(f"two records of {name}")
        response = record.get("response") or {}
        kept[name] = [record.get(field) for field in ("text", "finish_reason", "logprobs", "error")]
        kept[name].append(response.get("body", {}).get("choices"))
    return kept


class Kills:
    """Kills jobs ``kills`` times in all, each up to five times, and compares them with one run in peace."""

    def __init__(self, kills: int, seed: int) -> None:
        self.report = Report(seed)
        self._kills = kills
        self._rng = Random(seed)

    def run(self, folder: Path) -> Report:
        """Do it in ``folder``."""
        model = write_model(folder / "model")
        (folder / "in.jsonl").write_text("\n".join(lines(self._rng)) + "\n")
        command = [sys.executable, "-m", "rootlet", "batch", "--model", model]
        command += ["--input", str(folder / "in.jsonl"), *FLAGS]
        begun = time.monotonic()
        subprocess.run([*command, "--output", str(folder / "peace.jsonl")], check=False, capture_output=True)
        whole = time.monotonic() - begun
        expected = answers(folder / "peace.jsonl")
        with tqdm(total=self._kills, unit="kills") as bar:
            job = survived = 0
            while bar.n < self._kills and survived < MAX_SURVIVED:
                output = folder / f"{job}.jsonl"
                wanted = min(KILLS_PER_JOB, self._kills - bar.n)
                killed = self._job([*command, "--output", str(output)], whole, wanted)
                bar.update(killed)
                self._compare(output, expected)
                job += 1
                survived = 0 if killed else survived + 1
            if bar.n < self._kills:
                self.report.fail("jobs end before they are killed", f"{survived} in a row")
        return self.report

    def _job(self, command: list[str], whole: float, kills: int) -> int:
        """Kill the job up to ``kills`` times, then let it end; returns how often it was killed."""
        killed = 0
        for _ in range(kills):
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                process.wait(self._rng.uniform(0.2, 1.0) * whole)
                self.report.outcomes["ended before its kill"] += 1
                break
            except subprocess.TimeoutExpired:
                process.kill()
                killed += 1
            finally:
                process.kill()
                process.wait()
        process = subprocess.run(command, check=False, capture_output=True, text=True)
        self.report.outcomes[f"last run ended with {process.returncode}"] += 1
        if process.returncode not in (0, 1):  # 1: some records are errors
            self.report.fail(f"resuming ended with {process.returncode}", process.stderr[-500:])
        self.report.outcomes["kills"] += killed
        return killed

    def _compare(self, output: Path, expected: dict[str, Any]) -> None:
        try:
            got = answers(output)
        except (OSError, ValueError, AssertionError) as error:
            self.report.fail("output that cannot be read", repr(error))
            return
        wrong = [name for name in expected | got if expected.get(name) != got.get(name)]
        if wrong:
            name = wrong[0]
            self.report.fail(
                "output differs from that of a job in peace",
                f"{len(wrong)} records, {name}: {expected.get(name)!r:.200} became {got.get(name)!r:.200}",
            )
        else:
            self.report.outcomes["jobs whose output is that of a job in peace"] += 1
