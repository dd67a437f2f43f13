"""Logit processors of the caller's own: objects or plain callables that edit the logits of their requests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..errors import InvalidRequestError

LogitProcessor = Callable[[torch.Tensor, "list[dict[str, Any]]"], torch.Tensor]
"""Takes the logits [n, V] fp32 of its n rows and their ``custom_params``; returns logits of that shape."""


def resolve_processor(given: Any, custom_params: Any) -> LogitProcessor | None:
    """What a request passed as a processor, ready to be called."""
    if given is None:
        if custom_params is not None:
            raise InvalidRequestError(
                "custom_params are read by a custom_logit_processor, and there is none."
            )
        return None
    return given
