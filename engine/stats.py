"""Numbers about a running engine."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .core import EngineCore


logger = logging.getLogger("rootlet.engine")


@dataclass(frozen=True)
class EngineStats:
    """A snapshot between two steps. ``num_*`` without a unit count since the engine was built.

    Attributes:
        num_running, num_waiting: requests now; num_compiling: those whose grammars are being compiled.
        num_steps: steps launched.
        num_computed_tokens: tokens that went through the model.
        num_prompt_tokens_cached, num_prompt_tokens_computed: how prompts were served on first admission.
        num_generated_tokens: tokens sampled and kept.
        num_preemptions: times a running request lost its pages.
        num_finished: requests ended, however.
        pages_total, pages_free, pages_cached, pages_evictable: of the KV pool; cached pages are held by the
            prefix tree, evictable ones by nothing else.
    """

    num_running: int
    num_waiting: int
    num_compiling: int
    num_steps: int
    num_computed_tokens: int
    num_prompt_tokens_cached: int
    num_prompt_tokens_computed: int
    num_generated_tokens: int
    num_preemptions: int
    num_finished: int
    pages_total: int
    pages_free: int
    pages_cached: int
    pages_evictable: int

    @property
    def cache_hit_rate(self) -> float:
        """Share of prompt tokens that came from the prefix cache, 0 to 1."""
        total = self.num_prompt_tokens_cached + self.num_prompt_tokens_computed
        return self.num_prompt_tokens_cached / total if total else 0.0

    @property
    def token_usage(self) -> float:
        """Share of the pool's pages that running requests hold, 0 to 1."""
        return 1 - (self.pages_free + self.pages_evictable) / self.pages_total


class StatsLine:
    """Logs a line at INFO every ``interval`` steps: what runs and waits, pages in use, speed, cache hits."""

    def __init__(self, interval: int) -> None:
        self._interval = interval
        self._last: tuple[float, EngineStats] | None = None

    def __call__(self, core: EngineCore) -> None:
        """Look at ``core`` after a step."""
        if core.scheduler.stats.num_steps % self._interval:
            return
        now, stats = time.monotonic(), collect(core)
        speed = ""
        if self._last is not None:
            before, earlier = self._last
            tokens = stats.num_generated_tokens - earlier.num_generated_tokens
            speed = f", {tokens / max(now - before, 1e-9):.1f} tokens/s"
        self._last = now, stats
        logger.info(
            "%d running, %d waiting, token usage %.0f %%%s, cache hit rate %.0f %%",
            stats.num_running,
            stats.num_waiting,
            100 * stats.token_usage,
            speed,
            100 * stats.cache_hit_rate,
        )


def collect(core: EngineCore) -> EngineStats:
    """Read the counters of ``core`` (on the thread that owns it)."""
    scheduler = core.scheduler
    counters = scheduler.stats
    return EngineStats(
        num_running=len(scheduler.running),
        num_waiting=len(scheduler.waiting),
        num_compiling=len(scheduler.compiling),
        num_steps=counters.num_steps,
        num_computed_tokens=counters.num_computed_tokens,
        num_prompt_tokens_cached=counters.num_prompt_tokens_cached,
        num_prompt_tokens_computed=counters.num_prompt_tokens_computed,
        num_generated_tokens=counters.num_generated_tokens,
        num_preemptions=counters.num_preemptions,
        num_finished=counters.num_finished,
        pages_total=scheduler.pool.num_pages - 1,
        pages_free=scheduler.pool.num_free,
        pages_cached=scheduler.cache.num_pages,
        pages_evictable=scheduler.cache.num_evictable,
    )
