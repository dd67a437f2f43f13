"""From a batch of requests to the layout of a step: the one place in this folder that reads requests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..schedule.row_loops import gather
from .columns import TokenColumn, fill_columns
from .layout import BoundSamples, Insert, Piece, ScoreRange, StepLayout

if TYPE_CHECKING:
    from ..schedule.batch import Batch, BatchRow


def lay_out(batch: Batch, columns: Sequence[TokenColumn] = ()) -> StepLayout:
    """The layout of a batch, which has at least one row, with these columns besides the engine's own."""
    decodes, others, n = batch.decodes, batch.other_rows, len(batch.decodes.requests)
    slots, starts, counts, samples = places = np.ones((4, batch.num_rows), dtype=np.int32)
    slots[:n], starts[:n] = decodes.slots, decodes.starts
    tables = gather("pages", decodes.requests)
    if others:
        requests, *where, draws, _, drafts = zip(*others)
        places[:3, n:] = where
        samples[n:] = np.add(draws, [*map(len, drafts)])
        tables += gather("pages", list(requests))
    return StepLayout(
        slots,
        starts,
        counts,
        samples,
        num_decodes=batch.num_decodes,
        only_decodes=not others,
        sampling_rows=gather("sampling_row", batch.sampling_requests),
        page_tables=tables,
        more_columns=fill_columns(columns, batch, batch.num_tokens),
        token_writes=batch.token_writes,
        page_writes=batch.page_writes,
        page_copies=batch.page_copies,
        scores=list(_scores(batch)) if others else (),
        pieces=list(_pieces(batch)) if batch.collects_states else (),
        inserts=list(_inserts(batch)) if others else (),
        bound=list(_bound(batch)) if batch.is_bound else (),
    )


def _other_rows(batch: Batch) -> Iterator[tuple[int, int, BatchRow]]:
    """(index, index of its first token, row) of those that are no plain decodes."""
    begin = len(batch.decodes.requests)
    for index, row in enumerate(batch.other_rows, begin):
        yield index, begin, row
        begin += row.num_tokens


def _scores(batch: Batch) -> Iterator[ScoreRange]:
    for index, begin, row in _other_rows(batch):
        options = row.request.logprobs
        if row.score is not None and options is not None:
            first, last = row.score
            yield ScoreRange(index, row.slot, first, last, begin + first - row.start, options.top)


def _pieces(batch: Batch) -> Iterator[Piece]:
    """Which tokens have states that are wanted and not collected yet."""
    begin = 0
    for index, row in enumerate(batch.rows):
        if row.request.return_hidden_states:
            first = max(row.start, row.request.collected.num_states)
            if first < row.end:
                yield Piece(index, begin + first - row.start, begin + row.num_tokens)
        begin += row.num_tokens


def _inserts(batch: Batch) -> Iterator[Insert]:
    """Prompts given as vectors, as far as this step computes them."""
    for _, begin, row in _other_rows(batch):
        embeds = row.request.input_embeds
        if embeds is not None and row.start < row.request.num_prompt_tokens:
            yield Insert(begin, embeds[row.start : row.end])  # which end with the prompt


def _bound(batch: Batch) -> Iterator[BoundSamples]:
    for first, request in enumerate(batch.decodes.requests):
        if request.constraint is not None:
            yield BoundSamples(first, request.constraint)
    first = len(batch.decodes.requests)
    for row in batch.other_rows:
        if row.request.constraint is not None and row.samples:
            yield BoundSamples(first, row.request.constraint, row.drafts)
        first += row.num_samples
