"""Which tokens grammars allow next, row by row, on their way to the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ..errors import GrammarError

if TYPE_CHECKING:
    from .request import Request

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
        return torch.empty((rows, self._width), dtype=torch.int32, pin_memory=pinned)

    def fill(self, requests: Sequence[Request]) -> tuple[torch.Tensor, dict[int, GrammarError]]:
        """Masks [B, ceil(V / 32)] int32 on the device, one row per request; errors of grammars by row.

        Requests without a grammar, and those that ended since they were scheduled, may draw any token.
        """
        count = len(requests)
        if count > len(self._buffer):
            self._buffer = self._allocate(1 << (count - 1).bit_length())
        masks = self._buffer[:count].numpy()
        errors: dict[int, GrammarError] = {}
        for row, request in enumerate(requests):
            if request.matcher is None or request.is_finished:
                masks[row] = _ALL
                continue
            try:
                request.matcher.fill(masks, row)
            except GrammarError as error:
                masks[row] = _ALL
                errors[row] = error
        return self._buffer[:count].to(self._device, non_blocking=True), errors
