"""The tensors of one step, as every kind of inputs builds them."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ...models.forward import ForwardInput


class SampledPlaces(NamedTuple):
    """Where the S tokens drawn in a step belong.

    Attributes:
        tokens: [S] indices into the step's T tokens after which they are drawn; None: all, in order.
        slots: [S] int64 (int32 on a GPU), rows of the token table.
        positions: [S] int64, index of each in its sequence.
    """

    tokens: torch.Tensor | None
    slots: torch.Tensor
    positions: torch.Tensor

    def states(self, hidden: torch.Tensor) -> torch.Tensor:
        """The states [S, H] that tokens are drawn from, of those [T, H] or [S, H] that a pass returned."""
        # a model of the user's own may compute all states always
        if self.tokens is not None and len(hidden) > len(self.tokens):
            return hidden.index_select(0, self.tokens)
        return hidden


class StepInput(NamedTuple):
    """What the model reads, and where what is drawn of its states goes."""

    forward: ForwardInput
    sampled: SampledPlaces
