"""What a tensor of an update must be, whatever its name: whole, there, and made of numbers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from ...errors import NumericalError, WeightsError, short
from ...models.fields import list_names

_GATHER = "Gather full tensors first: full_tensor(), summon_full_params() or GatheredParameters()."


def check_tensors(named: Iterable[tuple[Any, Any]]) -> None:
    """Raise one WeightsError about every name and tensor that cannot be a weight."""
    problems = [problem for name, tensor in named if (problem := find_problem(name, tensor))]
    if problems:
        raise WeightsError(f"The update cannot be used; nothing was changed. {list_names(problems)}")


def find_problem(name: Any, tensor: Any) -> str | None:
    """What is wrong with a named tensor, in a sentence; None if nothing is."""
    if not isinstance(name, str):
        return f"A name must be a string, got {short(name)}."
    if not isinstance(tensor, torch.Tensor):
        return f"{name} must be a tensor, got {type(tensor).__name__}."
    plain = type(tensor) in (torch.Tensor, torch.nn.Parameter)
    if not plain and (hasattr(tensor, "full_tensor") or hasattr(tensor, "device_mesh")):
        return f"{name} is a {type(tensor).__name__}, a part of a tensor. {_GATHER}"
    if tensor.layout is not torch.strided:
        return f"{name} has the layout {tensor.layout}; weights are plain tensors."
    if tensor.is_meta:
        return f"{name} is on the meta device and has no values."
    if not tensor.numel():
        return f"{name} is empty, as parameters are that ZeRO-3 or FSDP has divided. {_GATHER}"
    return None


def check_finite(named: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Raise NumericalError naming the tensors that have NaN or infinities."""
    wrong = [name for name, tensor in named if tensor.is_floating_point() and not tensor.isfinite().all()]
    if wrong:
        raise NumericalError(
            f"Weights are not finite; nothing was changed. With NaN or infinities ({len(wrong)}):"
            f" {list_names(wrong)}. Look at the trainer's last step, or leave check_finite out."
        )
