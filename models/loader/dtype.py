"""The type a model computes in: what the user asked for, the checkpoint says and the device can do."""

from __future__ import annotations

import logging
from typing import Final

import torch

from ...errors import ConfigError

logger = logging.getLogger("rootlet.models")

_NAMES: Final = {
    "half": torch.float16,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float": torch.float32,
    "float32": torch.float32,
}


def choose_dtype(
    asked: str | torch.dtype, checkpoint: torch.dtype | None, device: torch.device | str
) -> torch.dtype:
    """The dtype of weights and activations.

    ``asked`` is ``"auto"``, one of half, float16, bfloat16, float, float32, or one of these as a torch dtype.
    ``checkpoint`` is the type the weights are stored in, None if they are quantised (GGUF) or it is unknown.

    ``"auto"`` keeps the checkpoint's type, with two exceptions: on the CPU, which computes in bfloat16 and
    float32 only, float16 becomes bfloat16 (same memory, same speed; float32 would double both); on other
    devices float32 becomes float16, as the documented system does. Unknown means bfloat16. Raises
    ConfigError for other names and for an explicit float16 on the CPU.
    """
    on_cpu = torch.device(device).type == "cpu"
    if asked == "auto":
        return _auto(checkpoint, on_cpu)
    dtype = asked if isinstance(asked, torch.dtype) else _NAMES.get(asked)
    if dtype is None or dtype not in _NAMES.values():
        raise ConfigError(f"dtype must be auto or one of {', '.join(_NAMES)}, got {asked!r}.")
    if on_cpu and dtype == torch.float16:
        raise ConfigError(
            f"dtype {asked!r} is not available on the CPU, which computes in bfloat16 and float32. "
            "Use dtype='bfloat16' (same memory) or dtype='float32' (exact for float16 weights)."
        )
    return dtype


def _auto(checkpoint: torch.dtype | None, on_cpu: bool) -> torch.dtype:
    if checkpoint is None or checkpoint not in _NAMES.values():
        return torch.bfloat16
    if on_cpu and checkpoint == torch.float16:
        logger.info("The weights are float16; on the CPU dtype='auto' computes in bfloat16.")
        return torch.bfloat16
    if not on_cpu and checkpoint == torch.float32:
        return torch.float16
    return checkpoint
