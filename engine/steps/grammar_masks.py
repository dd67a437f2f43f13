"""Which tokens grammars allow next, row by row, on their way to the device."""

from __future__ import annotations

import time
from itertools import repeat
from typing import TYPE_CHECKING

import torch

from ...errors import GrammarError

if TYPE_CHECKING:
    import numpy as np

    from ..schedule.batch import Batch
    from ..schedule.request import Request

_MAX_SECONDS = 0.25  # of CPU time, for one mask: whoever needs more holds everybody up
_ALL = -1  # every bit of a word


class GrammarMasks:
    """Fills masks on the host, in one buffer used again by every step, and sends them to the device.

    The buffer may be written to as soon as the tokens of the step before are on the host: what was drawn with
    its masks was drawn after they had been copied.
    """

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._width = -(-vocab_size // 32)
        self._device = device
        self._buffer = self._allocate(0)

    def _allocate(self, rows: int) -> torch.Tensor:
        pinned = self._device.type == "cuda"
        return torch.empty((rows, self._width), dtype=torch.int32, pin_memory=pinned, device="cpu")

    def fill(self, batch: Batch) -> tuple[torch.Tensor, dict[int, GrammarError]]:
        """Masks [S, ceil(V / 32)] int32 on the device, one row per drawn token; errors of grammars by row.

        Requests without a grammar, and those that ended since they were scheduled, may draw any token.
        """
        count = len(batch.sampling_requests)
        if count > len(self._buffer):
            self._buffer = self._allocate(1 << (count - 1).bit_length())
        masks = self._buffer[:count].numpy()
        errors: dict[int, GrammarError] = {}
        row = 0
        others = [(other.request, other.num_samples) for other in batch.other_rows]
        for request, samples in (*zip(batch.decodes.requests, repeat(1)), *others):
            if request.constraint is None or request.constraint.is_lifted:
                masks[row : row + samples] = _ALL
            elif samples:
                try:
                    _fill_rows(request, masks[row : row + samples])
                except GrammarError as error:
                    masks[row : row + samples] = _ALL
                    errors[row] = error
            row += samples
        return self._buffer[:count].to(self._device, non_blocking=True), errors


def _fill_rows(request: Request, masks: np.ndarray) -> None:
    """The masks of a request's next token, and of those behind its drafts as if those had been drawn."""
    matcher, accepted = request.constraint.matcher, 0
    began = time.thread_time()
    matcher.fill(masks, 0)
    if time.thread_time() - began > _MAX_SECONDS:
        raise GrammarError(
            f"The constraint needs more than {_MAX_SECONDS} s for one token: there are too many readings of"
            " the text so far. Let its parts be told apart by how they begin."
        )
    drafts = () if request.speculation is None else request.speculation.drafts
    for row, draft in enumerate(drafts, 1):
        if not matcher.accept(draft):
            masks[row:] = _ALL  # the draft cannot be drawn, so nothing behind it counts
            break
        accepted += 1
        matcher.fill(masks, row)
    matcher.rollback(accepted)
