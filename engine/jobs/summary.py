"""How a job went."""

from __future__ import annotations

from dataclasses import dataclass, field

from .causes import ErrorCauses


@dataclass(frozen=True)
class JobSummary:
    """Result of :func:`rootlet.run_jobs`.

    Attributes:
        output: path of the output file.
        total: records of the job (input lines that are not blank); all are in the output.
        resumed: records that were there before this run.
        completed: records written by this run, error records included.
        errors: error records in the output, of this and earlier runs.
        prompt_tokens, completion_tokens, cached_tokens: sums over this run's engine requests.
        seconds: wall time of this run from its first request, model loading excluded.
        causes: the error records by their ``code``: how many, and the first few of their lines.
    """

    output: str
    total: int
    resumed: int
    completed: int
    errors: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    seconds: float
    causes: ErrorCauses = field(default_factory=ErrorCauses)

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens per second of this run."""
        return self.completion_tokens / self.seconds if self.seconds > 0 else 0.0

    @property
    def cache_hit_rate(self) -> float:
        """Share of this run's prompt tokens that came from the prefix cache, 0 to 1."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0

    def __str__(self) -> str:
        """A few lines to print at the end."""
        errors = f", {self.errors} of them errors" if self.errors else ""
        earlier = f" ({self.resumed} from an earlier run)" if self.resumed else ""
        causes = "".join(f"  {code}: {cause}\n" for code, cause in self.causes.most_frequent())
        return (
            f"{self.resumed + self.completed} of {self.total} records{earlier}{errors}\n{causes}"
            f"{self.prompt_tokens:,} prompt tokens ({self.cache_hit_rate:.0%} from the prefix cache), "
            f"{self.completion_tokens:,} generated tokens in {self.seconds:.1f} s "
            f"({self.tokens_per_second:,.0f} tokens/s)\n"
            f"output: {self.output}"
        )
