"""What callers get of a request besides its tokens, put together as its steps are committed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from .logprobs import PackedLogprob, TokenLogprob
    from .sampling_masks import PackedMask


@dataclass(eq=False, slots=True)
class Collected:
    """Empty in a request that asks for nothing but tokens.

    Attributes:
        output_logprobs: one per committed output token, if asked for. Only ever appended to while the
            request runs, so other threads may look.
        sampling_masks: one per committed output token of a request that is masked; as ``output_logprobs``.
        prompt_logprobs: of consecutive prompt tokens.
        num_scored: leading prompt positions that need no score of their successor (any more).
        hidden_states: tensors [n, H] of consecutive tokens.
        num_states: leading tokens whose hidden states were collected, or begun to be, before a preemption.
        embedding: of the whole request, in an engine that embeds.
    """

    output_logprobs: list[PackedLogprob] = field(default_factory=list)
    sampling_masks: list[PackedMask] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    num_scored: int = 0
    hidden_states: list[torch.Tensor] = field(default_factory=list)
    num_states: int = 0
    embedding: list[float] | None = None
