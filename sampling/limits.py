"""How much one call may ask for; every limit of a request's counts stands here.

What a caller passes lies in the caller's memory already. These limits bound what we would make of it: copies
per sample, lists per token, work per step. All of them are far beyond ordinary use; what exceeds one is
refused before anything is built.
"""

from __future__ import annotations

from typing import NoReturn

from ..errors import InvalidParameterError

MAX_SAMPLES = 1024
"""``n``: samples of one prompt, in calls and in jobs."""

MAX_REQUESTS = 65_536
"""Prompts times ``n`` in one call, where ``n`` is more than 1."""

MAX_COPIED_TOKENS = 2**27
"""Prompt tokens times ``n`` in one call, where ``n`` is more than 1."""

MAX_STOPS = 256
"""Stop strings of one request: every character of its output is compared with each."""

MAX_STOP_CHARS = 16_384
"""Characters of all stop strings of one request together."""

MAX_ENTRIES = 2**20
"""Entries times ``n``: of ``logit_bias``, of ``stop_token_ids``, of ``custom_params``."""

MAX_TOP_LOGPROBS = 2**24
"""``top_logprobs_num`` times positions (``max_new_tokens``, and the prompt's that are scored) times ``n``."""

MAX_MASK_BYTES = 2**32
"""What sampling masks of a request may take: ``max_new_tokens`` times ``n`` times the largest of a token."""

MAX_ID_CHARS = 512
"""Characters of a ``rid`` or of the id of a session."""


def check_count(name: str, count: int, limit: int, hint: str = "") -> None:
    """Raise InvalidParameterError if ``count`` of ``name`` is more than ``limit``."""
    if count > limit:
        _refuse(f"{name} must be at most {limit:,}, got {count:,}.", hint)


def check_product(name: str, count: int, n: int, limit: int, hint: str = "") -> None:
    """Raise InvalidParameterError if ``n`` samples with ``count`` of ``name`` each exceed ``limit``."""
    if count * n > limit:
        times = f" times n={n}" if n > 1 else ""
        _refuse(f"{name}{times} must be at most {limit:,}, got {count:,}{times}.", hint)


def _refuse(message: str, hint: str) -> NoReturn:
    raise InvalidParameterError(f"{message} {hint}".rstrip())
