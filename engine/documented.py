"""Helpers that the documentation's examples import."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from ..signatures import suggest_names
from .engine import Engine


@suggest_names()
def stream_and_merge(engine: Engine, prompt: str, sampling_params: Any = None) -> str:
    """Stream the answer to one text and return it whole; what the documentation's helper of that name does.

    Snapshots are cumulative, so there is nothing to merge: the last one is the answer.
    """
    text = ""
    for output in engine.generate(prompt, sampling_params, stream=True):
        text = output.text or ""
    return text


@suggest_names()
async def async_stream_and_merge(
    engine: Engine, prompt: str, sampling_params: Any = None
) -> AsyncIterator[str]:
    """Yield the answer to one text piece by piece, each piece once."""
    shown = 0
    async for output in await engine.async_generate(prompt, sampling_params, stream=True):
        text = output.text or ""
        if len(text) > shown:
            yield text[shown:]
            shown = len(text)
