"""The simple line form and its output record.

Input:  ``{"id"?, "prompt" | "messages", "sampling_params"?, "metadata"?, "return_logprob"?,
"logprob_start_len"?, "top_logprobs_num"?}``; ``prompt`` is a text or a list of token ids.

Output: ``{"id", "index", "key", "text", "finish_reason", "usage", "error": null}``, with ``metadata``,
``logprobs`` and (without a tokenizer, instead of ``text``) ``token_ids`` where they apply. With n > 1
``text``, ``token_ids``, ``finish_reason`` and ``logprobs`` are lists of n.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...errors import InvalidRequestError, unknown_option
from ..chat.conversation import Conversation
from .identity import LineIdentity
from .request import JobDefaults, LineLogprobs, LineRequest, Prompt, check_prompt, check_type

if TYPE_CHECKING:
    from ..replies.outputs import RequestOutput

FIELDS = (
    "id",
    "prompt",
    "messages",
    "sampling_params",
    "metadata",
    "return_logprob",
    "logprob_start_len",
    "top_logprobs_num",
)
_LOGPROB_FIELDS = (
    "input_token_logprobs",
    "output_token_logprobs",
    "input_top_logprobs",
    "output_top_logprobs",
)


def parse_simple(body: dict[str, Any], identity: bytes, defaults: JobDefaults) -> LineRequest:
    """Read a simple line; raises a RootletError that names the wrong field."""
    for name in body:
        if name not in FIELDS:
            raise unknown_option("field", name, FIELDS)  # data of one's own goes under metadata
    sampling = check_type("sampling_params", body.get("sampling_params") or {}, dict, "an object")
    return LineRequest(
        form="simple",
        prompts=(_prompt(body),),
        params=defaults.merge({}, sampling, identity),
        logprobs=_logprobs(body),
        metadata=body.get("metadata"),
    )


def simple_record(
    identity: LineIdentity, request: LineRequest, outputs: Sequence[RequestOutput]
) -> dict[str, Any]:
    """The output record of an answered simple line; ``outputs`` holds its n samples."""
    record = _head(identity)
    one = outputs[0] if request.params.n == 1 else None
    field = "text" if outputs[0].text is not None else "token_ids"
    record[field] = one[field] if one else [out[field] for out in outputs]
    record["finish_reason"] = one.finish_reason if one else [out.finish_reason for out in outputs]
    if request.logprobs:
        record["logprobs"] = _logprob_record(one) if one else [_logprob_record(out) for out in outputs]
    record["usage"] = {
        "prompt_tokens": outputs[0].prompt_tokens,
        "completion_tokens": sum(out.completion_tokens for out in outputs),
        # of the prompt as it was computed first: further samples find it in the cache
        "cached_tokens": min(out.cached_tokens for out in outputs),
    }
    if request.metadata is not None:
        record["metadata"] = request.metadata
    return record | {"error": None}


def simple_error(identity: LineIdentity, error: dict[str, Any]) -> dict[str, Any]:
    """The output record of a simple line that got no answer."""
    return _head(identity) | {"error": error}


def _head(identity: LineIdentity) -> dict[str, Any]:
    return {"id": identity.id, "index": identity.index, "key": identity.key}


def _prompt(body: dict[str, Any]) -> Prompt:
    given = [name for name in ("prompt", "messages") if body.get(name) is not None]
    if len(given) != 1:
        raise InvalidRequestError(
            f"Give either prompt or messages; the line has {' and '.join(given) or 'none'}."
        )
    if given == ["messages"]:
        return Conversation.from_json(body["messages"])
    return check_prompt("prompt", body["prompt"])


def _logprobs(body: dict[str, Any]) -> LineLogprobs | None:
    if not check_type("return_logprob", body.get("return_logprob", False), bool, "true or false"):
        for name in ("logprob_start_len", "top_logprobs_num"):
            if name in body:
                raise InvalidRequestError(f"{name} needs return_logprob to be true.")
        return None
    return LineLogprobs(
        check_type("logprob_start_len", body.get("logprob_start_len", -1), int, "an integer"),
        check_type("top_logprobs_num", body.get("top_logprobs_num", 0), int, "an integer"),
    )


def _logprob_record(output: RequestOutput) -> dict[str, Any]:
    return {name: getattr(output, name) for name in _LOGPROB_FIELDS if getattr(output, name) is not None}
