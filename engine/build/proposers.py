"""Who guesses how outputs go on in an engine: a line for each, asked in this order."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..schedule.drafts.drafter import Drafter

if TYPE_CHECKING:
    from ..config import EngineConfig
    from ..requests.constraints import Constraints
    from ..schedule.drafts.proposer import Proposer


def _forced_text(config: EngineConfig, constraints: Constraints) -> Proposer | None:
    return None if config.disable_jump_forward else constraints.forced_text()


PROPOSERS: tuple[Callable[[EngineConfig, Constraints], Proposer | None], ...] = (_forced_text,)
"""Each makes a proposer for an engine, or None where it has nothing to go by."""


def make_drafter(
    config: EngineConfig, constraints: Constraints, max_rows: int, *, on_gpu: bool
) -> Drafter | None:
    """What drafts tokens in steps that draw up to ``max_rows``; None if nobody proposes any."""
    proposers = [proposer for make in PROPOSERS if (proposer := make(config, constraints)) is not None]
    return Drafter(proposers, max_rows, on_gpu=on_gpu) if proposers else None
