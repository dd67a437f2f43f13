"""``continue_from``: outputs that ended early, to be read as the requests that go on from them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from ...errors import InvalidRequestError, short
from ..replies.outputs import RequestOutput
from .prompts import Prompt

if TYPE_CHECKING:
    from ...sampling.params import SamplingParams
    from ..replies.continuation import Continuation
    from .arguments import GenerateArgs
    from .prompts import Limits

# What a request began with, it goes on with: so these may not be given again.
_SETTLED = (
    "return_logprob",
    "logprob_start_len",
    "top_logprobs_num",
    "logprobs_of",
    "return_text_in_logprobs",
    "return_sampling_mask",
    "return_hidden_states",
    "session_params",
    "input_embeds",
)


class Finished(NamedTuple):
    """An output that is answered as it is: nothing can follow."""

    output: RequestOutput


class Resumed(NamedTuple):
    """An output to go on from. ``params`` are its own, or given anew."""

    output: RequestOutput
    kept: Continuation
    params: SamplingParams

    @property
    def prompt(self) -> Prompt:
        """The original one."""
        return Prompt(self.kept.prompt_ids.tolist(), self.kept.embeds)


def read_outputs(args: GenerateArgs) -> tuple[list[RequestOutput], bool]:
    """The outputs of ``continue_from``, and whether they were given as a list.

    Raises InvalidRequestError for anything else, and beside arguments that were settled by the first call.
    """
    given = args.continue_from
    is_batch = isinstance(given, (list, tuple))
    outputs = list(given) if is_batch else [given]
    for output in outputs:
        if not isinstance(output, RequestOutput):
            hint = " Pass its .output." if hasattr(output, "output") else ""
            raise InvalidRequestError(
                "continue_from takes RequestOutput objects as generate() or a handle returned them, one or a"
                f" list, got {type(output).__name__}: {short(output)}.{hint}"
            )
    prompts = {"prompt": args.prompt, "input_ids": args.input_ids}
    named = [name for name, value in prompts.items() if value is not None]
    named += [name for name in _SETTLED if _is_set(args.fields.get(name))]
    if named:
        raise InvalidRequestError(
            f"continue_from goes on as the request began, so {' and '.join(named)} cannot be given with it:"
            " leave them out. sampling_params and custom_logit_processor may be given anew."
        )
    return outputs, is_batch


def resume(
    output: RequestOutput, params: SamplingParams | None, processor: Any, limits: Limits
) -> Resumed | Finished:
    """How a request goes on from ``output``, with new ``params`` and ``processor`` if they are given.

    Raises InvalidRequestError if it cannot: the output lacks what is needed, or has no tokens left to draw.
    """
    reason = output.finish_reason
    if reason is None:
        raise InvalidRequestError(
            f"Output {short(output.rid)} has not ended, so another request cannot continue it: abort it, and"
            " pass the final output of its handle."
        )
    by_length = reason["type"] == "length"
    if reason["type"] == "stop" or (by_length and params is None):
        return Finished(output)
    kept = _kept(output)
    lacking = [name for name in kept.left_out if not _is_given(name, params, processor)]
    if lacking:
        again = " and ".join(lacking)
        hint = "send the tokens as a new prompt" if "input_embeds" in lacking else f"pass {again} again"
        raise InvalidRequestError(
            f"Output {short(output.rid)} does not hold {again} any more (pickle leaves out code, and outputs"
            f" that ended by length keep no vectors): {hint}."
        )
    wanted = params or kept.params
    assert wanted is not None  # it is left out otherwise, and so was given
    if wanted.n > 1:
        if params is not None:
            raise InvalidRequestError(f"continue_from continues outputs one by one: leave n={wanted.n} out.")
        wanted = replace(wanted, n=1)
    limits.check_ids(kept.prompt_ids.tolist(), " of the original prompt")
    if output.token_ids:
        limits.check_ids(list(output.token_ids), " of the output")
    most = max(limits.max_new_tokens(len(kept.prompt_ids), wanted.max_new_tokens), 1)
    if len(output.token_ids) < most:
        return Resumed(output, kept, wanted)
    if by_length:
        return Finished(output)
    raise InvalidRequestError(
        f"max_new_tokens counts from the end of the original prompt: {most} leave nothing to draw behind the"
        f" {len(output.token_ids)} tokens of output {short(output.rid)}. Give more."
    )


def _kept(output: RequestOutput) -> Continuation:
    kept = output.continuation
    if kept is None:
        raise InvalidRequestError(
            f"Output {short(output.rid)} holds neither its prompt nor its parameters, so it cannot be"
            " continued: only outputs as an engine returned them do, and their copies and pickles; those made"
            " by hand or by dataclasses.replace do not."
        )
    return kept


def _is_set(value: Any) -> bool:
    return value is not None and value is not False


def _is_given(name: str, params: SamplingParams | None, processor: Any) -> bool:
    return {"sampling_params": params, "custom_logit_processor": processor}.get(name) is not None
