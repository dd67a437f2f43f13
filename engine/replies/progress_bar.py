"""The progress bar of everything that takes more than a few seconds."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence

from tqdm import tqdm

from . import streams
from .embedding import EmbeddingOutput
from .outputs import RequestOutput
from .readable import Owner, Readable


class ProgressBar(tqdm):  # type: ignore[misc]  # tqdm has no types
    """tqdm's bar, without the monitor thread it would start: that thread outlives every bar."""

    monitor_interval = 0


def watch(handles: Sequence[Readable], owner: Owner) -> None:
    """Show a bar until all ``handles`` have ended; being interrupted aborts them, as without a bar.

    The waiting thread draws, never the engine's. The handles' requests must not stream: each of their outputs
    counts as a finished request. Raises the error of the first request that failed.
    """
    with _request_bar(len(handles)) as count:
        for output in streams.Stream(handles, owner):
            count(output)


async def watch_async(handles: Sequence[Readable], owner: Owner) -> None:
    """:func:`watch` for a running event loop, which is never blocked."""
    with _request_bar(len(handles)) as count:
        async for output in streams.AsyncStream(handles, owner):
            count(output)


@contextlib.contextmanager
def _request_bar(total: int) -> Iterator[Callable[[RequestOutput], None]]:
    """A bar over ``total`` requests with their tokens per second; yields what counts one output."""
    started, tokens = time.monotonic(), 0
    with ProgressBar(total=total, unit=" requests") as bar:

        def count(output: RequestOutput) -> None:
            nonlocal tokens
            tokens += _num_tokens(output)
            rate = tokens / max(time.monotonic() - started, 1e-9)
            bar.set_postfix_str(f"{rate:,.0f} tokens/s", refresh=False)
            bar.update()

        yield count


def _num_tokens(output: RequestOutput | EmbeddingOutput) -> int:
    """Tokens that ``output`` is about: its own, or those of the prompt where none were asked for."""
    if isinstance(output, EmbeddingOutput) or (output.finish_reason or {}).get("length") == 0:
        return output.prompt_tokens
    return output.completion_tokens
