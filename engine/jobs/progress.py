"""Live progress: a bar on a terminal or in a notebook, a line in the log now and then elsewhere."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from ..replies.progress_bar import ProgressBar
from .causes import ErrorCauses
from .identity import LineError

if TYPE_CHECKING:
    from ..replies.outputs import RequestOutput

logger = logging.getLogger("rootlet.jobs")

_LOG_SECONDS = 30.0


class Progress:
    """Counts what a run of a job does, and shows it inside :meth:`display`.

    ``total`` records, ``resumed`` of them done before; ``causes`` are those of the error records among these.
    """

    def __init__(self, total: int, resumed: int, causes: ErrorCauses) -> None:
        self.total = total
        self.resumed = resumed
        self.completed = 0
        self.causes = causes
        self._shown: set[str] = set()  # codes of errors that were logged
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.cached_tokens = 0
        self.seconds = 0.0  # wall time inside display()
        self._started = self._last_log = 0.0
        self._show = False
        self._bar: ProgressBar | None = None

    @contextlib.contextmanager
    def display(self, show: bool) -> Iterator[None]:
        """Start the clock, and the bar if there is one to show; stop both at the end."""
        self._show = show
        self._started = self._last_log = time.monotonic()
        if show and _has_live_display():
            self._bar = ProgressBar(total=self.total, initial=self.resumed, unit=" records", **_width())
        try:
            yield
        finally:
            self._update_clock()
            if self._bar is not None:
                self._bar.close()

    def answered(self, outputs: Sequence[RequestOutput]) -> None:
        """One record was written; ``outputs`` are the engine's answers behind it."""
        for out in outputs:
            self.prompt_tokens += out.prompt_tokens
            self.completion_tokens += out.completion_tokens
            self.cached_tokens += out.cached_tokens
        self._advance()

    def refused(self, line: int, error: LineError) -> None:
        """One error record was written, for ``line`` (counted from 1); the first of a kind is logged."""
        self.causes.add(error.code, [line])
        if self._show and error.code not in self._shown:
            self._shown.add(error.code)
            logger.warning("Line %d, the first with %s: %s", line, error.code, error.message[:300])
        self._advance()

    def tick(self) -> None:
        """Nothing happened for a while: keep the clock on the display going."""
        if self._bar is not None:
            self._bar.refresh()
        elif self._show and time.monotonic() - self._last_log >= _LOG_SECONDS:
            self._log()

    def _advance(self) -> None:
        self.completed += 1
        self._update_clock()
        if self._bar is not None:
            self._bar.set_postfix_str(self._figures(), refresh=False)
            self._bar.update()
        else:
            self.tick()

    def _update_clock(self) -> None:
        self.seconds = time.monotonic() - self._started

    def _figures(self) -> str:
        rate = self.completion_tokens / max(self.seconds, 1e-9)
        hits = self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0
        codes = ", ".join(f"{code} {cause.count}" for code, cause in self.causes.most_frequent()[:3])
        errors = f", {self.causes.total} errors ({codes})" if codes else ""
        return f"{rate:,.0f} tokens/s, cache {hits:.0%}{errors}"

    def _log(self) -> None:
        self._last_log = time.monotonic()
        done = self.resumed + self.completed
        left = (self.total - done) * self.seconds / self.completed if self.completed else None
        eta = "" if left is None else f", about {tqdm.format_interval(left)} left"
        logger.info("%d of %d records, %s%s", done, self.total, self._figures(), eta)


def _width() -> dict[str, Any]:
    """The bar follows the terminal; some terminals say they have no columns, which would hide it."""
    try:
        known = os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except (OSError, ValueError):
        known = False
    return {"dynamic_ncols": True} if known else {"ncols": 100}


def _has_live_display() -> bool:
    """Whether a bar can redraw itself: standard error is a terminal, or this is a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    in_notebook = shell is not None and hasattr(shell, "kernel")
    return in_notebook or (sys.stderr is not None and sys.stderr.isatty())
