"""Hidden states on their way to the callers who asked for them.

A step computes states [T, H] after the final norm, one per token. Those of requests with
``return_hidden_states`` are copied to the host beside the sampled tokens, handed to the requests at commit
and put together when a request ends. A position's state is collected once, however often it is recomputed:
``Collected.num_states`` says how many leading positions earlier admissions have collected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .host_copy import HostCopy
from .layout import Piece


@dataclass(frozen=True)
class CollectedStates:
    """States of one step, being copied.

    ``copy`` holds a tensor [n, H] for each ``(begin, end)`` of ``runs``: neighbouring pieces travel together.
    """

    pieces: tuple[Piece, ...]
    runs: tuple[tuple[int, int], ...]
    copy: HostCopy

    @classmethod
    def begin(cls, pieces: Sequence[Piece], hidden: torch.Tensor) -> CollectedStates | None:
        """Begin to copy ``pieces``, in the order of tokens, of ``hidden`` [T, H]; None if there are none."""
        if not pieces:
            return None
        runs: list[tuple[int, int]] = []
        for piece in pieces:
            if runs and runs[-1][1] == piece.begin:
                runs[-1] = (runs[-1][0], piece.end)
            else:
                runs.append((piece.begin, piece.end))
        copy = HostCopy({str(begin): hidden[begin:end] for begin, end in runs})
        return cls(tuple(pieces), tuple(runs), copy)

    def wait(self) -> list[tuple[int, torch.Tensor]]:
        """Block until the copy is complete; of each piece its row and states [n, H], in memory of their own.

        A view would keep the whole step's states alive, batch mates' included, as long as its own row's.
        """
        result = []
        runs = iter(self.runs)
        first = last = 0
        for piece in self.pieces:
            if piece.end > last:
                first, last = next(runs)
                states = self.copy.tensor(str(first))
            result.append((piece.row, states[piece.begin - first : piece.end - first].clone()))
        return result


def assembled(pieces: Sequence[torch.Tensor], num_prompt_tokens: int) -> list[torch.Tensor]:
    """The documented list: states of the prompt [P, H], then [H] of each decode step.

    ``pieces`` [n, H] are those of a request, in order.

    One entry per generated token: entry i is what token i was drawn from, the last row in entry 0's case. A
    request that ended in its prefill has the states of the part that was computed, or no entry.
    """
    if not pieces:
        return []
    states = torch.cat(tuple(pieces))
    return [states[:num_prompt_tokens], *states[num_prompt_tokens:]]
