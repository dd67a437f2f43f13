"""``align`` and ``token_logprobs``: the trainer's side of exact on-policy training."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, overload

import torch
from torch import Tensor

from ..errors import AlignmentError, ConfigError, InvalidRequestError, short
from ..signatures import suggest_names
from .aligned import Alignment, alignment_of
from .modules import check_module, choose_dtype
from .sequences import Sequences, unpadded


@suggest_names()
def align(
    module: Any, *, dtype: str | torch.dtype | None = None, context_length: int | None = None
) -> Alignment:
    """Have a causal language model of transformers compute with the kernels of a deterministic engine.

    From then on ``module(input_ids, attention_mask=...)`` gives the logits of
    ``rootlet.Engine(..., deterministic=True)``, in fp32, and :func:`token_logprobs` its log-probabilities,
    both to the last bit for equal weights, on the same kind of device. Gradients are those of the same
    formulas in torch. Parameters, names, ``state_dict``, ``save_pretrained`` and gradient checkpointing stay
    as they are; the ``forward`` of the decoder and of the head of this one instance is replaced, so hooks of
    modules inside the decoder do not run.

    Args:
        module: ``LlamaForCausalLM``, ``MistralForCausalLM`` or ``Qwen2ForCausalLM``, not wrapped or compiled.
        dtype: what the engine computes in, by default the type of the parameters. Others are rounded to it at
            every use: fp32 parameters with ``dtype="bfloat16"`` match a bf16 engine that loaded them.
        context_length: that of the engine, where the rotation depends on it (dynamic, longrope).

    Returns an :class:`Alignment`: ``undo()``, or the end of a ``with`` block, restores the module. Raises
    ModelError for what cannot be aligned (WeightsError where it is the parameters), ConfigError for an
    impossible option, AlignmentError if the module is aligned already.
    """
    if context_length is not None and context_length < 1:
        raise ConfigError(f"align: context_length must be at least 1, got {context_length}.")
    if alignment_of(module) is not None:
        raise AlignmentError("This module is aligned already; call undo() of its alignment first.")
    check_module(module)
    return Alignment(module, choose_dtype(module, dtype), context_length)


@overload
def token_logprobs(
    module: Any,
    ids: Tensor,
    temperature: float = 1.0,
    *,
    attention_mask: Tensor | None = None,
    logits_to_keep: int | None = None,
) -> Tensor: ...


@overload
def token_logprobs(
    module: Any,
    ids: Sequence[Sequence[int]],
    temperature: float = 1.0,
    *,
    attention_mask: None = None,
    logits_to_keep: int | None = None,
) -> list[Tensor]: ...


@suggest_names()
def token_logprobs(
    module: Any,
    ids: Any,
    temperature: float = 1.0,
    *,
    attention_mask: Tensor | None = None,
    logits_to_keep: int | None = None,
) -> Any:
    """The log-probability of each token given those before it, as the engine reports it, with gradients.

    Args:
        module: a module that :func:`align` aligned.
        ids: a list of sequences of token ids; or a tensor ``[B, T]``, padded on either side.
        temperature: what logits are divided by, above 0. For tokens that the engine chose greedily it is 1.
        attention_mask: ``[B, T]``, 1 at tokens and 0 at padding; None: all are tokens.
        logits_to_keep: only of the last so many places of each row or sequence, from 1; None: of all.

    Returns, for a list of sequences, a list of fp32 tensors ``[n - 1]``: of all tokens but the first. For a
    tensor, ``[B, T - 1]`` fp32: of the tokens ``ids[:, 1:]``, 0 at padding and at the first token of a row.
    Equal to the last bit to ``output_token_logprobs`` of a deterministic engine with the same weights, for
    tokens sampled at this temperature: those of ``logprobs_of="tempered"`` whatever else was asked for, those
    of other kinds where no top-p, penalties or constraints were.

    Raises AlignmentError for a module that is not aligned, or with autocast, a compiler or dropout on;
    InvalidRequestError for impossible ids, masks, temperatures or numbers.
    """
    alignment = alignment_of(module)
    if alignment is None:
        raise AlignmentError(
            f"token_logprobs: this {type(module).__name__} is not aligned; call rootlet.align(module) first."
        )
    if not isinstance(temperature, (int, float)) or not 1e-6 <= temperature <= 1e30:
        raise InvalidRequestError(
            f"temperature must be a number from 1e-6 to 1e30, got {short(temperature)}; of greedy tokens it"
            " is 1."
        )
    if logits_to_keep is not None and (not isinstance(logits_to_keep, int) or logits_to_keep < 1):
        raise InvalidRequestError(f"logits_to_keep must be at least 1 or None, got {short(logits_to_keep)}.")
    device = alignment.described().device
    if isinstance(ids, Tensor):
        return _of_rows(alignment, ids.to(device), attention_mask, float(temperature), logits_to_keep)
    if attention_mask is not None:
        raise InvalidRequestError("attention_mask goes with a tensor of ids; a list has no padding.")
    flat, lengths = _flattened(ids)
    sequences = Sequences.of(torch.tensor(flat, dtype=torch.int64, device=device), lengths)
    counts = [min(n - 1, logits_to_keep or n) for n in lengths]
    ends = itertools.accumulate(lengths)
    wanted = [token for end, count in zip(ends, counts) for token in range(end - count, end)]
    places = torch.tensor(wanted, dtype=torch.int64, device=device)
    return list(alignment.token_logprobs(sequences, places, float(temperature)).split(counts))


def _of_rows(
    alignment: Alignment, ids: Tensor, mask: Tensor | None, temperature: float, kept: int | None
) -> Tensor:
    """Those of ids ``[B, T]``, in their places ``[B, T - 1]`` or the last of them."""
    sequences, places = unpadded(ids, mask)
    columns = ids.shape[1]
    kept = min(columns - 1, kept or columns)
    is_wanted = (sequences.positions > 0) & (places % columns >= columns - kept)
    wanted = is_wanted.nonzero().squeeze(1)
    values = alignment.token_logprobs(sequences, wanted, temperature)
    padded = values.new_zeros(ids.numel()).index_copy(0, places[wanted], values)
    return padded.view(ids.shape)[:, columns - kept :]


def _flattened(ids: Any) -> tuple[list[int], list[int]]:
    """All tokens, and how many each sequence has. Raises InvalidRequestError."""
    try:
        rows = [[int(token) for token in row] for row in ids]
    except TypeError:
        raise InvalidRequestError(
            f"ids must be a list of sequences of token ids, or a tensor [B, T], got {short(ids)}."
        ) from None
    if not rows or not all(rows):
        raise InvalidRequestError("ids needs at least one sequence, and a token in each.")
    return [token for row in rows for token in row], [len(row) for row in rows]
