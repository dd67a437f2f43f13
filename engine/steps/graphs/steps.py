"""Which steps are replayed, and from which recordings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from .decodes import DecodeGraphs
from .mixed import MixedGraphs

if TYPE_CHECKING:
    import torch

    from ..layout import StepLayout
    from ..step_input import SampledPlaces
    from .recorder import RecordedStep, Recorder

# Tokens and rows of the steps that streams meet first, then of those that come when many of them arrive.
_AHEAD = ((512, 64), (1024, 256))


class StepGraphs:
    """Everything of an engine that is recorded. Call on the runner's stream."""

    def __init__(self, decodes: DecodeGraphs, mixed: MixedGraphs, recorder: Recorder) -> None:
        self._decodes = decodes
        self._mixed = mixed
        self._recorder = recorder
        self._ahead: Iterator[RecordedStep] | None = None
        self._next: RecordedStep | None = None

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

    def record_ahead(self, columns: Sequence[str]) -> bool:
        """Do the next part of recording what streams will meet; False if all of it is recorded.

        A part takes the host as long as launching a step kernel by kernel. ``columns``: names of those that
        the model reads per token.
        """
        if self._ahead is None:
            self._ahead = self._steps_ahead(columns)
        while self._next is None or self._next.is_recorded:
            self._next = next(self._ahead, None)
            if self._next is None:
                return False
        self._next.get_ready()
        return True

    def _steps_ahead(self, columns: Sequence[str]) -> Iterator[RecordedStep]:
        for num_tokens, num_rows in _AHEAD:
            yield from self._mixed.ahead(num_tokens, columns)
            yield from self._decodes.ahead(num_rows, columns)

    @property
    def nbytes(self) -> int:
        """Bytes of the device that recordings hold."""
        return self._recorder.nbytes

    def close(self) -> None:
        """Let the recordings go, and their memory; nothing may be running of them. Others may follow.

        They refer to what made them, so they would stay until a garbage collection, which may then strike
        while another engine records.
        """
        self._ahead = self._next = None
        self._decodes.close()
        self._mixed.close()
        self._recorder.close()
