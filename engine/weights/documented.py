"""Updates in the documented words: names, arguments and messages of the system that we implement."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ...errors import ConfigError, InvalidParameterError, ModelError, short
from .options import UpdateOptions

if TYPE_CHECKING:
    from .updates import Updates


def from_tensor(
    updates: Updates,
    named_tensors: Sequence[tuple[str, torch.Tensor]],
    load_format: str | None,
    *,
    flush_cache: bool,
) -> tuple[bool, str]:
    """``update_weights_from_tensor``."""
    if load_format not in (None, "direct"):
        raise InvalidParameterError(
            f"load_format must be None or 'direct', got {short(load_format)}: tensors come by their names in"
            " a checkpoint. For one buffer of many use weight_update().add_bucket()."
        )
    options = UpdateOptions(partial=True, on_running="finish", flush_cache=flush_cache)
    updates.update(list(named_tensors), None, options)
    return True, "Success"


def from_disk(
    updates: Updates, model_path: str | os.PathLike[str], load_format: str | None
) -> tuple[bool, str]:
    """``update_weights_from_disk``: False and why where the checkpoint is not there or does not fit."""
    try:
        source = updates.open_path(model_path, load_format or "auto")
    except (ConfigError, ModelError, OSError) as error:
        return False, f"Failed to get weights iterator: {error}."
    try:
        updates.take(source, UpdateOptions(on_running="finish"))
    except (ModelError, OSError) as error:
        return False, f"Failed to update weights: {error}.\nRolling back to original weights."
    return True, "Succeeded to update model weights."
