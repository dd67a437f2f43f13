"""How a layer of attention scores keys, as one object that every kernel takes whole."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property

import torch


@dataclass(frozen=True, eq=False)
class Scoring:
    """How a layer scores keys: what attention takes beside tensors and a plan.

    A kernel names the fields that it knows in a positive list, its ``CAN``; who chooses between kernels asks
    ``scoring.asks <= CAN``. So a field that is new is refused everywhere until a kernel says that it can.
    Equal are those whose kernels do the same: numbers by value, tensors by identity.
    """

    scale: float  # multiplies the scores
    window: int | None = None  # positions a token sees, itself included; None: all
    soft_cap: float | None = None  # bound of the scores
    sinks: torch.Tensor | None = None  # [Hq] fp32: a score per q head that takes weight and has no value
    slopes: tuple[float, ...] | None = None  # per q head, what a score loses for each position back (ALiBi)
    causal: bool = True  # False: every token of a row sees all of its context

    @cached_property
    def asks(self) -> frozenset[str]:
        """Names of the fields, besides ``scale``, that a kernel must know to do this."""
        optional = ("window", "soft_cap", "sinks", "slopes")
        names = [name for name in optional if getattr(self, name) is not None]
        return frozenset(names if self.causal else [*names, "causal"])

    @cached_property
    def _key(self) -> tuple[Hashable, ...]:
        return (self.scale, self.window, self.soft_cap, id(self.sinks), self.slopes, self.causal)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Scoring) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


def check_scoring(scoring: Scoring, can: frozenset[str], num_q_heads: int, kernel: str) -> None:
    """Raise ValueError where ``scoring`` asks for more than ``kernel`` can, or does not fit so many heads."""
    if not scoring.asks:
        return
    if not scoring.asks <= can:
        beyond, known = ", ".join(sorted(scoring.asks - can)), ", ".join(sorted(can)) or "none"
        raise ValueError(f"{kernel} does not know {beyond}. Of the fields of a Scoring it knows: {known}.")
    if scoring.window is not None and scoring.window < 1:
        raise ValueError(f"window is {scoring.window}; it must be at least 1, or None for no window.")
    for name, values in (("sinks", scoring.sinks), ("slopes", scoring.slopes)):
        if values is not None and len(values) != num_q_heads:
            raise ValueError(f"There are {len(values)} {name} for {num_q_heads} q heads; one each is needed.")
