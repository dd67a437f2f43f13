"""Running the callers' logit processors, and what becomes of rows that no token can be drawn for.

A row fails in one of two ways. What the host sees (a processor raised, or returned something else than its
logits) is an error at once. What only the device sees (NaN) is a flag that travels to the host together with
the token ids, so that nobody waits for it.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch

from ..errors import LogitProcessorError, NumericalError, RootletError, is_interrupt
from .custom import LogitProcessor, processor_name
from .rows import SamplingRow

NO_TOKEN, SPOILED = 1, 2
"""Flags of a row: its highest logit is NaN or -inf; its processor turned numbers into NaN."""

_FORCED = 1e30  # stands for +inf, of which softmax makes NaN; stays finite when divided by a temperature


class ProcessorGroup(NamedTuple):
    """The rows that one processor edits together.

    Not a dataclass: ``upload`` would look for tensors inside the caller's objects.

    Attributes:
        processor: the caller's.
        rows: their indices in the batch, ascending; ``row_ids`` [n] int64 are the same on the device.
        custom_params: their dicts, in that order.
    """

    processor: LogitProcessor
    rows: list[int]
    row_ids: torch.Tensor
    custom_params: list[dict[str, Any]]


def group_processors(
    rows: Sequence[SamplingRow], processed: Iterable[int], device: torch.device
) -> tuple[ProcessorGroup, ...]:
    """The rows with processors, at the indices ``processed``, by processor object in order of first rows."""
    # by identity: callers' objects may define any equality
    groups: dict[int, tuple[LogitProcessor, list[int]]] = {}
    for i in processed:
        processor = rows[i].processor
        if processor is not None:
            groups.setdefault(id(processor), (processor, []))[1].append(i)

    def on_device(index: list[int]) -> torch.Tensor:
        host = torch.tensor(index, dtype=torch.int64, pin_memory=device.type == "cuda", device="cpu")
        return host.to(device, non_blocking=True)

    return tuple(
        ProcessorGroup(processor, index, on_device(index), [rows[i].custom_params for i in index])
        for processor, index in groups.values()
    )


class Edited(NamedTuple):
    """What became of the rows: ``flags`` [B] uint8, ``SPOILED`` or 0; the ``errors`` of those whose processor
    failed, by row (they keep the logits they had).
    """

    flags: torch.Tensor
    errors: dict[int, LogitProcessorError]


def run_processors(logits: torch.Tensor, groups: Sequence[ProcessorGroup]) -> Edited:
    """Let every processor edit its rows of ``logits`` [B, V] fp32, in place."""
    flags = torch.zeros(len(logits), dtype=torch.uint8, device=logits.device)
    errors: dict[int, LogitProcessorError] = {}
    for group in groups:
        given = logits.index_select(0, group.row_ids)  # a copy: the caller may keep it, or break it and raise
        had_nan = _has_nan(given)
        try:
            edited = _edit(group, given)
            spoiled = _has_nan(edited) & ~had_nan
        except BaseException as error:  # the caller's code may raise anything; it concerns these rows only
            if is_interrupt(error):
                raise
            errors.update(dict.fromkeys(group.rows, _failure(group.processor, error)))
            continue
        logits.index_copy_(0, group.row_ids, edited)
        flags.index_copy_(0, group.row_ids, spoiled.to(torch.uint8) * SPOILED)
    return Edited(flags, errors)


def explain(flag: int, row: SamplingRow) -> RootletError:
    """The error of a row with a flag."""
    if flag & SPOILED:
        assert row.processor is not None  # only a processor spoils rows
        return LogitProcessorError(
            f"custom_logit_processor {processor_name(row.processor)} returned NaN among the logits of this"
            " request. It must return numbers, -inf to ban a token or +inf to force one."
        )
    name = "" if row.processor is None else f" and custom_logit_processor {processor_name(row.processor)}"
    return NumericalError(
        f"The model{name} left no token to choose for this request: its logits are NaN, or all of them -inf."
        " The usual cause of NaN is overflow: use a wider dtype (bfloat16 or float32), and check the weights."
        " Where everything is banned, ban less."
    )


def _edit(group: ProcessorGroup, given: torch.Tensor) -> torch.Tensor:
    """What the processor makes of ``given`` [n, V] fp32; raises _WrongResult or whatever it raises."""
    shape, dtype, device = given.shape, given.dtype, given.device  # `given` is the caller's from here on
    edited = group.processor(given, list(group.custom_params))
    wanted = f"logits {list(shape)} {dtype} on {device}"
    if not isinstance(edited, torch.Tensor):
        hint = ": end it with `return logits`" if edited is None else ""
        raise _WrongResult(f"returned {type(edited).__name__} instead of {wanted}{hint}")
    if (edited.shape, edited.dtype, edited.device, edited.layout) != (shape, dtype, device, torch.strided):
        got = f"{list(edited.shape)} {edited.dtype} on {edited.device}"
        raise _WrongResult(f"returned {got} instead of {wanted}")
    return edited.clamp(max=_FORCED)


class _WrongResult(Exception):
    """What a processor returned is no logits; the message goes on after its name."""


def _has_nan(logits: torch.Tensor) -> torch.Tensor:
    """Which rows of [n, V] have NaN, [n] bool: a maximum is NaN if anything is."""
    return logits.amax(1).isnan()


def _failure(processor: LogitProcessor, error: BaseException) -> LogitProcessorError:
    """Our error for what a processor raised or returned."""
    name = f"custom_logit_processor {processor_name(processor)}"
    if isinstance(error, _WrongResult):
        return LogitProcessorError(f"{name} {error}.")
    frames = traceback.extract_tb(error.__traceback__)[2:]  # below our own two
    place = f" ({frames[-1].filename}:{frames[-1].lineno}, in {frames[-1].name})" if frames else ""
    failure = LogitProcessorError(f"{name} raised {error!r}{place}. Only requests that use it are ended.")
    failure.__cause__ = _without_frames(error)
    return failure


def _without_frames(error: BaseException) -> BaseException:
    """``error`` and what led to it, less the tracebacks: their frames hold tensors and the engine."""
    link: BaseException | None = error
    while link is not None and link.__traceback__ is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
    return error
