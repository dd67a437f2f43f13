"""When a request passed its stations, as seen by the engine: four looks at the clock, none per token."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(frozen=True)
class RequestTiming:
    """How long a request took, in seconds.

    Attributes:
        queue_s: from submission until a step first computed some of it.
        prefill_s: from there until its first token was known; preemptions in between included.
        first_token_s: from submission until its first token was known: ``queue_s + prefill_s``.
        total_s: from submission to its end.

    ``queue_s``, ``prefill_s`` and ``first_token_s`` are None for a request that ended before.
    """

    queue_s: float | None
    prefill_s: float | None
    first_token_s: float | None
    total_s: float

    def as_dict(self) -> dict[str, float | None]:
        """The form in ``meta_info``."""
        return {
            "queue_s": self.queue_s,
            "prefill_s": self.prefill_s,
            "first_token_s": self.first_token_s,
            "total_s": self.total_s,
        }


@dataclass(eq=False, slots=True)
class Stamps:
    """Times of :func:`time.monotonic` at which a request passed its stations; None: not yet."""

    submitted: float = field(default_factory=time.monotonic)
    scheduled: float | None = None
    first_token: float | None = None
    finished: float | None = None

    def timing(self) -> RequestTiming:
        """The durations between the stamps of a finished request; of others, up to now."""
        first = self._since_submission(self.first_token)
        queue = self._since_submission(self.scheduled)
        prefill = None
        if self.first_token is not None and self.scheduled is not None:
            prefill = self.first_token - self.scheduled
        ended = time.monotonic() if self.finished is None else self.finished
        return RequestTiming(queue, prefill, first, ended - self.submitted)

    def _since_submission(self, stamp: float | None) -> float | None:
        return None if stamp is None else stamp - self.submitted
