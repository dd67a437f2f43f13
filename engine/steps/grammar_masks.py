"""Which tokens grammars allow next, row by row, on their way to the device."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

from ...errors import GrammarError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from .layout import BoundSamples

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

    def fill(self, bound: Sequence[BoundSamples], count: int) -> tuple[torch.Tensor, dict[int, GrammarError]]:
        """Masks [S, ceil(V / 32)] int32 on the device for S = ``count`` drawn tokens; errors by token.

        Tokens that no constraint binds, or one that is lifted since they were scheduled, may be any.
        """
        if count > len(self._buffer):
            self._buffer = self._allocate(1 << (count - 1).bit_length())
        masks = self._buffer[:count].numpy()
        errors: dict[int, GrammarError] = {}
        end = 0
        for one in bound:
            masks[end : one.first] = _ALL
            end = one.first + 1 + len(one.drafts)
            if one.constraint.is_lifted:
                masks[one.first : end] = _ALL
                continue
            try:
                _fill_rows(one, masks[one.first : end])
            except GrammarError as error:
                masks[one.first : end] = _ALL
                errors[one.first] = error
        masks[end:] = _ALL
        return self._buffer[:count].to(self._device, non_blocking=True), errors


def _fill_rows(bound: BoundSamples, masks: np.ndarray) -> None:
    """The masks of the next token, and of those behind drafts as if those had been drawn."""
    matcher, accepted = bound.constraint.matcher, 0
    if bound.constraint.is_contradicted:
        raise GrammarError(
            "The output so far is not one that the constraint allows, so it cannot be continued under it. Go"
            " on with the constraint that it began with, or with none."
        )
    began = time.thread_time()
    matcher.fill(masks, 0)
    if time.thread_time() - began > _MAX_SECONDS:
        raise GrammarError(
            f"The constraint needs more than {_MAX_SECONDS} s for one token: there are too many readings of"
            " the text so far. Let its parts be told apart by how they begin."
        )
    for row, draft in enumerate(bound.drafts, 1):
        if not matcher.accept(draft):
            masks[row:] = _ALL  # the draft cannot be drawn, so nothing behind it counts
            break
        accepted += 1
        matcher.fill(masks, row)
    matcher.rollback(accepted)
