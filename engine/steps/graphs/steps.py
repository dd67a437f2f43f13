"""Which steps are replayed, and from which recordings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .decodes import DecodeGraphs
from .mixed import MixedGraphs

if TYPE_CHECKING:
    import torch

    from ..layout import StepLayout
    from ..step_input import SampledPlaces


class StepGraphs:
    """Everything of an engine that is recorded. Call on the runner's stream."""

    def __init__(self, decodes: DecodeGraphs, mixed: MixedGraphs) -> None:
        self._decodes = decodes
        self._mixed = mixed

    def replay(self, layout: StepLayout) -> tuple[torch.Tensor, SampledPlaces] | None:
        """Enqueue the layers: hidden states [S, H], and where what is drawn of them goes.

        None: this step must be launched kernel by kernel.
        """
        if self._decodes.fits(layout):
            return self._decodes.replay(layout)
        # how many decodes are recorded at most is an option, which mixed steps are not to get round
        return None if layout.only_decodes else self._mixed.replay(layout)

    def replay_greedy(self, layout: StepLayout) -> torch.Tensor | None:
        """Enqueue a step of decodes to the end: token ids [S] int64, already stored. Looks for no NaN.

        None: it has too many rows.
        """
        return self._decodes.replay_greedy(layout) if self._decodes.fits(layout) else None

    def close(self) -> None:
        """Let the recordings go, and their memory; nothing may be running of them.

        They refer to what made them, so they would stay until a garbage collection, which may then strike
        while another engine records.
        """
        self._decodes.close()
        self._mixed.close()
