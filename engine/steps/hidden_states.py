"""Hidden states on their way to the callers who asked for them.

A step computes states [T, H] after the final norm, one per token. Those of requests with
``return_hidden_states`` are copied to the host beside the sampled tokens, handed to the requests at commit
and put together when a request ends. A position's state is collected once, however often it is recomputed:
``Collected.num_states`` says how many leading positions earlier admissions have collected.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from ..schedule.batch import Batch
from ..schedule.request import Request
from .host_copy import HostCopy


@dataclass(frozen=True)
class Piece:
    """States of consecutive tokens of ``request``: tokens ``begin : end`` of the step's T."""

    request: Request
    begin: int
    end: int


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

    def wait(self) -> list[tuple[Request, torch.Tensor]]:
        """Block until the copy is complete; states [n, H] of each piece, in memory of their own.

        A view would keep the whole step's states alive, batch mates' included, as long as its own request's.
        """
        result = []
        runs = iter(self.runs)
        first = last = 0
        for piece in self.pieces:
            if piece.end > last:
                first, last = next(runs)
                states = self.copy.tensor(str(first))
            result.append((piece.request, states[piece.begin - first : piece.end - first].clone()))
        return result


def wanted_pieces(batch: Batch) -> list[Piece]:
    """Which of the step's tokens have states that are wanted and not collected yet."""
    return list(_wanted(batch)) if batch.collects_states else []


def _wanted(batch: Batch) -> Iterator[Piece]:
    offset = 0
    for row in batch.rows:
        request = row.request
        if request.return_hidden_states:
            first = max(row.start, request.collected.num_states)
            if first < row.end:
                yield Piece(request, offset + first - row.start, offset + row.num_tokens)
        offset += row.num_tokens


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
