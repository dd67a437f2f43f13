"""Numbers that stand beside a token on its way to the device: adapter, angle, whatever a feature looks up.

A column is an object here and a tensor ``inp.columns[name]`` [T] int32 in a model's ``forward``; uploads,
padding and recorded steps carry it without knowing it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ...errors import ModelError
from .layout import OWN_COLUMNS

if TYPE_CHECKING:
    from ..schedule.batch import Batch
    from ..schedule.request import Request


class TokenColumn(Protocol):
    """An int32 per token. 0 has to mean nothing: tokens of padding have it.

    What keys and values depend on belongs into the request's namespace, or into its ``prompt_keys``, as well:
    otherwise the prefix cache takes tokens of another value for the same.
    """

    @property
    def name(self) -> str:
        """By which the model finds it; unlike any other column's."""

    def values(self, request: Request, start: int, stop: int) -> int | Sequence[int]:
        """Those of tokens ``start : stop`` of a sequence: one for all of them, or one each."""


@dataclass(frozen=True)
class RequestColumn:
    """A column with one number per request: ``of(request)``."""

    name: str
    of: Callable[[Request], int]

    def values(self, request: Request, start: int, stop: int) -> int:  # noqa: ARG002
        """See :class:`TokenColumn`."""
        return self.of(request)


def checked(columns: Sequence[TokenColumn]) -> tuple[TokenColumn, ...]:
    """The columns of an engine. Raises ModelError if two of them, its own included, share a name."""
    names = [*OWN_COLUMNS, *(column.name for column in columns)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ModelError(
            f"Token columns are named {', '.join(map(repr, twice))} more than once. Each needs a name of its"
            f" own; {', '.join(OWN_COLUMNS)} are the engine's."
        )
    return tuple(columns)


def fill_columns(columns: Sequence[TokenColumn], batch: Batch, num_tokens: int) -> dict[str, np.ndarray]:
    """Each column's values [T] int32 of a batch, by name."""
    filled = {}
    for column in columns:
        values = filled[column.name] = np.empty(num_tokens, dtype=np.int32)
        begin = 0
        for row in batch.rows:
            values[begin : begin + row.num_tokens] = column.values(row.request, row.start, row.end)
            begin += row.num_tokens
    return filled
