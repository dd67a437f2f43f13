"""What an output keeps of its request, so that a later call can go on where it ended."""

from __future__ import annotations

import pickle
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..schedule.request import Request

if TYPE_CHECKING:
    import torch

    from ...sampling.custom import LogitProcessor
    from ...sampling.params import SamplingParams
    from ..schedule.logprobs import PackedLogprob, TokenLogprob
    from ..schedule.request import LogprobOptions
    from ..schedule.sampling_masks import PackedMask


@dataclass(frozen=True, eq=False)
class Continuation:
    """Besides what the output says itself: its tokens, hidden states and versions of weights.

    Written by ``pickle`` without the processor, which may be any code, and without parameters that cannot be
    written; ``left_out`` then names the arguments that a call has to give again.

    Attributes:
        prompt_ids: array('i') [P].
        params, seed, processor, logprobs: the request's.
        notes: ``custom_params`` as the processor left them.
        prompt_logprobs, output_logprobs, sampling_masks: what was collected of it, as it was collected.
        wants_masks, wants_states, wants_text: ``return_sampling_mask``, ``return_hidden_states`` and
            ``return_text_in_logprobs``.
        embeds: [P, H] fp32, the vectors that the prompt was given as.
    """

    prompt_ids: array
    params: SamplingParams | None
    seed: int
    processor: LogitProcessor | None
    notes: dict[str, Any]
    logprobs: LogprobOptions | None
    prompt_logprobs: Sequence[TokenLogprob]
    output_logprobs: Sequence[PackedLogprob]
    sampling_masks: Sequence[PackedMask]
    wants_masks: bool
    wants_states: bool
    wants_text: bool
    embeds: torch.Tensor | None
    left_out: tuple[str, ...] = ()

    @classmethod
    def of(cls, request: Request, *, with_token_text: bool) -> Continuation | None:
        """That of a request that has ended; None if nothing can follow its end.

        Those that ended by their length keep no vectors, of which a prompt may have some hundred megabytes.
        """
        reason = request.finish_reason
        if reason is None or reason.type == "stop":
            return None
        row, collected = request.sampling_row, request.collected
        embeds = request.input_embeds
        lost = embeds is not None and reason.type != "abort"
        return cls(
            prompt_ids=request.token_ids[: request.num_prompt_tokens],
            params=request.params,
            seed=row.seed,
            processor=row.processor,
            notes=dict(row.custom_params),
            logprobs=request.logprobs,
            # a step under way may still bring some, which are nobody's
            prompt_logprobs=tuple(collected.prompt_logprobs),
            output_logprobs=collected.output_logprobs,
            sampling_masks=collected.sampling_masks,
            wants_masks=row.sampling_mask,
            wants_states=request.return_hidden_states,
            wants_text=with_token_text,
            embeds=None if lost else embeds,
            left_out=("input_embeds",) if lost else (),
        )

    def __getstate__(self) -> dict[str, Any]:
        state, left_out = dict(self.__dict__), list(self.left_out)
        if self.processor is not None:
            state["processor"] = None
            left_out.append("custom_logit_processor")
        try:
            pickle.dumps((self.params, self.notes))
        except Exception:  # custom_params hold whatever the caller put there
            state["params"], state["notes"] = None, {}
            left_out.append("sampling_params")
        return state | {"left_out": tuple(left_out)}

    def restore(self, request: Request, token_ids: Sequence[int], states: Sequence[torch.Tensor]) -> None:
        """Put what was collected into a new request for the same prompt, and ``token_ids`` behind it.

        ``states``: the output's hidden states, entry by entry.
        """
        collected = request.collected
        collected.prompt_logprobs += self.prompt_logprobs
        collected.num_scored += len(self.prompt_logprobs)
        collected.output_logprobs += self.output_logprobs
        collected.sampling_masks += self.sampling_masks
        collected.hidden_states += [state if state.dim() == 2 else state.unsqueeze(0) for state in states]
        collected.num_states = sum(map(len, collected.hidden_states))
        request.take_up(token_ids)
