"""From a configuration to a model without weights."""

from __future__ import annotations

import torch

from .config import ModelConfig
from .interface import Model, complete
from .registry import Architecture


def build_model(
    architecture: Architecture, config: ModelConfig, dtype: torch.dtype, device: torch.device | str
) -> Model:
    """A model of what :func:`~rootlet.models.registry.resolve` found for the configuration's name.

    Raises ModelError where the configuration asks for something that the class does not support.
    """
    family, output = architecture
    model = family(config, dtype, device, *(() if output is None else (output,)))
    return complete(model, dtype, config.hidden_size)
