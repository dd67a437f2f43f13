"""What abuse came to."""

from __future__ import annotations

import collections
from dataclasses import dataclass, field

from .process import FLAT, MB


@dataclass
class Report:
    """What came of it. ``failures``: what must not happen, by what it was; one repro each."""

    seed: int
    outcomes: collections.Counter[str] = field(default_factory=collections.Counter)
    failures: dict[str, str] = field(default_factory=dict)
    memory: list[int] = field(default_factory=list)  # bytes resident at each look

    def fail(self, what: str, repro: str) -> None:
        """Note a failure, once a kind."""
        self.outcomes["FAILED " + what] += 1
        self.failures.setdefault(what, repro)

    def check_memory(self, warm_up: int) -> None:
        """Memory after the first ``warm_up`` looks must be flat."""
        later = self.memory[warm_up:]
        if later and max(later) - later[0] > FLAT:
            self.fail("memory grows", f"{(max(later) - later[0]) / MB:.0f} MB after warm-up")

    def __str__(self) -> str:
        lines = [f"seed {self.seed}"]
        lines += [f"{count:8}  {outcome}" for outcome, count in sorted(self.outcomes.items())]
        lines.append("memory, MB: " + " ".join(f"{size / MB:.0f}" for size in self.memory))
        lines += [f"FAILED {what}\n  {repro}" for what, repro in self.failures.items()]
        return "\n".join([*lines, "failed" if self.failures else "passed"])
