"""Prompts given as vectors instead of tokens: checked where they enter, put in place of the embedding lookup.

Such a prompt has token id 1 in every place, as documented. Its prefix-cache namespace is a hash of its
values, so that only equal prompts share what was computed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch

from ...errors import InvalidRequestError
from ...models.forward import TokenEmbeds
from .layout import Insert

PLACEHOLDER = 1
"""The token id of every place."""


def parse_embeds(given: Any, hidden_size: int) -> tuple[list[torch.Tensor], bool]:
    """Return prompts ``[P, H]`` fp32 on the CPU, and whether several were given.

    ``given`` is one prompt or a list of them: a tensor, an array or nested lists ``[P, H]``, or one of three
    dimensions. Raises InvalidRequestError for anything else and for values that are not finite.
    """
    if isinstance(given, (list, tuple)) and given and _depth(given[0]) == 2:
        return [_matrix(prompt, hidden_size, f" (prompt {i})") for i, prompt in enumerate(given)], True
    if _depth(given) == 3:
        return [_matrix(prompt, hidden_size, f" (prompt {i})") for i, prompt in enumerate(given)], True
    return [_matrix(given, hidden_size, "")], False


def _depth(value: Any) -> int:
    """Dimensions of a tensor, an array or nested lists."""
    if hasattr(value, "ndim"):
        return value.ndim
    return 1 + _depth(value[0]) if isinstance(value, (list, tuple)) and value else 0


def _matrix(given: Any, hidden_size: int, where: str) -> torch.Tensor:
    try:
        if isinstance(given, (list, tuple)) and given and isinstance(given[0], torch.Tensor):
            given = torch.stack(tuple(given))
        matrix = torch.as_tensor(given, dtype=torch.float32, device="cpu").detach().clone().contiguous()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidRequestError(
            f"input_embeds{where} are not numbers in rows of one length: {error}"
        ) from error
    if type(matrix) is not torch.Tensor:
        raise InvalidRequestError(f"input_embeds{where} must be plain numbers, got {type(matrix).__name__}.")
    if matrix.dim() != 2 or matrix.shape[1] != hidden_size or not len(matrix):
        raise InvalidRequestError(
            f"input_embeds{where} have the shape {list(matrix.shape)}; a prompt is [tokens, {hidden_size}],"
            " at least one token."
        )
    if not matrix.isfinite().all():
        raise InvalidRequestError(f"input_embeds{where} hold values that are not finite.")
    return matrix


def digest_of(embeds: torch.Tensor) -> bytes:
    """What a prompt is in the prefix cache's namespace: the same for the same values."""
    return hashlib.sha256(embeds.numpy().tobytes()).digest()


def replaced_embeds(
    inserts: Sequence[Insert], device: torch.device, dtype: torch.dtype
) -> TokenEmbeds | None:
    """What stands in place of looked-up embeddings in a step; None if nothing does."""
    if not inserts:
        return None
    places = [
        torch.arange(begin, begin + len(values), dtype=torch.int64, device="cpu") for begin, values in inserts
    ]
    values = torch.cat([insert.values for insert in inserts])
    return TokenEmbeds(_sent(torch.cat(places), device), _sent(values.to(dtype), device))


def _sent(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """``values`` on ``device``. From pageable memory the host would wait for the step under way first."""
    if device.type == "cuda":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)
