"""Updates in the documented words: names, arguments and messages of the system that we implement."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from ...errors import (
    ConfigError,
    InvalidParameterError,
    ModelError,
    NumericalError,
    TransferError,
    WeightsError,
    short,
)
from .distributed import Groups, read_specs
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


def join(groups: Groups, rank_offset: int, **place: Any) -> tuple[bool, str]:
    """``init_weights_update_group``: this engine is one rank, the first of its group's receivers."""
    try:
        groups.join(rank=rank_offset, **place)
    except (ConfigError, InvalidParameterError, TransferError) as error:
        return False, f"Failed to initialize custom process group: {error}"
    return True, "Succeeded to initialize custom process group."


def leave(groups: Groups, name: str) -> tuple[bool, str]:
    """``destroy_weights_update_group``."""
    try:
        groups.leave(name)
    except InvalidParameterError as error:
        return False, f"Failed to destroy custom process group: {error}"
    return True, "Succeeded to destroy custom process group."


def from_distributed(
    groups: Groups,
    single: tuple[Any, Any, Any],
    several: tuple[Any, Any, Any],
    group_name: str,
    options: UpdateOptions,
) -> tuple[bool, str]:
    """``update_weights_from_distributed``: one tensor, in words of its own, or several."""
    given = [part is not None for part in (*single, *several)]
    if isinstance(single[0], (list, tuple)) and not any(given[3:]):  # the later form, by position
        single, several, given = several, single, given[3:] + given[:3]
    if given not in ([True] * 3 + [False] * 3, [False] * 3 + [True] * 3):
        raise InvalidParameterError(
            "Pass name, dtype and shape, or else names, dtypes and shapes: all three."
        )
    try:
        if given[0]:
            specs = read_specs(*([part] for part in single))
        else:
            specs = read_specs(*several)
        groups.receive(group_name, specs, options)
    except (InvalidParameterError, NumericalError, TransferError, WeightsError) as error:
        return False, f"Failed to update parameter online: {error} The old weights serve on."
    return True, f"Succeeded to update parameter {specs[0][0]} online." if given[0] else (
        "Succeeded to update parameter online."
    )
