"""Masks of allowed tokens on logits."""

from __future__ import annotations

import numpy as np
import torch

from .native import load

_C = load()


def mask_disallowed(logits: torch.Tensor, allowed_mask: torch.Tensor) -> None:
    """Set tokens whose bit is 0 to -inf, in place: logits [B, V] fp32.

    ``allowed_mask`` [B, ceil(V / 32)] int32: bit ``t % 32`` of word ``t // 32`` allows token ``t``.
    A row without a grammar has all bits set (-1). Raises ValueError for other shapes or dtypes.
    """
    rows, columns = logits.shape
    words = -(-columns // 32)
    if logits.dtype is not torch.float32 or allowed_mask.dtype is not torch.int32:
        raise ValueError(f"Masks are int32 and logits fp32, got {allowed_mask.dtype} and {logits.dtype}.")
    if tuple(allowed_mask.shape) != (rows, words):
        raise ValueError(f"The mask must be [{rows}, {words}], got {list(allowed_mask.shape)}.")
    if _C is None or logits.is_cuda or not (logits.is_contiguous() and allowed_mask.is_contiguous()):
        mask_disallowed_reference(logits, allowed_mask)
        return
    _C.mask_disallowed(logits.data_ptr(), allowed_mask.data_ptr(), rows, columns, words)


def pack_tokens(chosen: torch.Tensor) -> torch.Tensor:
    """Sets of tokens as such masks: ``chosen`` [B, V] bool -> [B, ceil(V / 32)] int32, its last bits 0."""
    rows, columns = chosen.shape
    padded = torch.nn.functional.pad(chosen, (0, -columns % 32))
    if chosen.device.type == "cpu":
        return torch.from_numpy(np.packbits(padded.numpy(), axis=1, bitorder="little")).view(torch.int32)
    bits = torch.arange(32, dtype=torch.int32, device=chosen.device)
    # no two of a word have a bit in common, so their sum is their union
    return (padded.view(rows, -1, 32).int() << bits).sum(2, dtype=torch.int32)


def unpack_tokens(words: np.ndarray, num_tokens: int) -> np.ndarray:
    """Ascending ids [N] int32 of the set of tokens in ``words`` [ceil(num_tokens / 32)] int32."""
    bits = np.unpackbits(words.view(np.uint8), bitorder="little", count=num_tokens)
    return np.flatnonzero(bits).astype(np.int32)


def mask_disallowed_reference(logits: torch.Tensor, allowed_mask: torch.Tensor) -> None:
    """Compute :func:`mask_disallowed` in torch."""
    bits = torch.arange(32, dtype=torch.int32, device=logits.device)
    forbidden = (allowed_mask.unsqueeze(2) >> bits).bitwise_and_(1) == 0
    logits.masked_fill_(forbidden.flatten(1)[:, : logits.shape[1]], float("-inf"))
