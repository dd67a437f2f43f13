"""From hidden states to logits or scores."""

from __future__ import annotations

import torch
from torch import Tensor

from .linear import Linear
from .slots import NamedSlots


class Head:
    """The product behind the last norm, in fp32: logits of every token, or scores of every label.

    They are multiplied by ``scale``, then bounded to ``-soft_cap..soft_cap`` by ``c * tanh(x / c)``
    (arXiv:2408.00118); None: not at all.
    """

    __slots__ = ("linear", "scale", "soft_cap")

    def __init__(self, linear: Linear, *, scale: float = 1.0, soft_cap: float | None = None) -> None:
        self.linear = linear
        self.scale = scale
        self.soft_cap = soft_cap

    def weights(self) -> NamedSlots:
        """Checkpoint names, from the top of the model."""
        return self.linear.weights()

    def forward(self, hidden: Tensor) -> Tensor:
        """States ``[R, H]`` -> ``[R, V]`` fp32."""
        logits = self.linear.forward(hidden, None, torch.float32)
        if self.scale != 1.0:
            logits *= self.scale
        if self.soft_cap is not None:
            logits.div_(self.soft_cap).tanh_().mul_(self.soft_cap)
        return logits
