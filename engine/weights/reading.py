"""Reading weights back, as a checkpoint has them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from ...errors import WeightsError, did_you_mean
from .renewal import runner_of

if TYPE_CHECKING:
    from ..core import EngineCore


def read_weight(core: EngineCore, name: str) -> torch.Tensor | None:
    """A copy of the weight of a checkpoint name, whole, on its device; None if there is none."""
    weight = runner_of(core).model.get_weight(name)
    return None if weight is None else weight.detach().clone()


def first_rows(core: EngineCore, name: str, count: int) -> list | None:
    """The first ``count`` rows as nested lists of floats; None for a name that nobody knows."""
    weight = runner_of(core).model.get_weight(name)
    return None if weight is None else weight[:count].float().tolist()


def checksum(core: EngineCore, names: Iterable[str] | None) -> dict[str, str]:
    """SHA-256 of the bytes of each weight, in its own dtype, row by row, as hexadecimal digits.

    ``names``: default all of them but tied ones. Raises WeightsError for an unknown name.
    """
    model = runner_of(core).model
    sums = {}
    for name in model.weight_shapes if names is None else names:
        weight = model.get_weight(name)
        if weight is None:
            raise WeightsError(
                f"The model has no weight {name!r}.{did_you_mean(str(name), model.weight_shapes)}"
            )
        raw = weight.detach().contiguous().view(-1).view(torch.uint8).cpu()
        sums[name] = hashlib.sha256(raw.numpy().data).hexdigest()
    return sums
