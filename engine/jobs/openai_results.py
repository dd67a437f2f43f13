"""Output records of OpenAI batch lines: ``{"id", "custom_id", "response", "error"}``.

``id`` is ``batch_req_`` and the line's key, so that a record says which content it answers. A line
without custom_id has ``index`` besides. ``response.body`` is a chat completion or text completion
object; ``choices`` is a list, prompt-major.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..chat.conversation import Conversation
from .identity import LineIdentity
from .request import LineRequest

if TYPE_CHECKING:
    from ..chat.outputs import ChatOutput
    from ..replies.outputs import LogprobTriple, RequestOutput

ID_PREFIX = "batch_req_"


def chat_record(
    identity: LineIdentity, request: LineRequest, replies: Sequence[ChatOutput]
) -> dict[str, Any]:
    """The output record of an answered chat line; ``replies`` holds its samples."""
    choices = [_chat_choice(i, request, reply) for i, reply in enumerate(replies)]
    outputs = [reply.output for reply in replies]
    return _record(identity, request, outputs, "chatcmpl-", "chat.completion", choices)


def completion_record(
    identity: LineIdentity, request: LineRequest, outputs: Sequence[RequestOutput], tokenizer: Any
) -> dict[str, Any]:
    """The output record of an answered completion line; ``outputs`` holds its samples, prompt-major."""
    choices = [_completion_choice(i, request, out, tokenizer) for i, out in enumerate(outputs)]
    return _record(identity, request, outputs, "cmpl-", "text_completion", choices)


def _record(
    identity: LineIdentity,
    request: LineRequest,
    outputs: Sequence[RequestOutput],
    prefix: str,
    kind: str,
    choices: list[dict[str, Any]],
) -> dict[str, Any]:
    body = {
        "id": prefix + identity.key,
        "object": kind,
        "created": int(time.time()),
        "model": request.model,
        "choices": choices,
        "usage": _usage(request, outputs),
        "system_fingerprint": None,
    }
    if request.metadata is not None:
        body["metadata"] = request.metadata
    response = {"status_code": 200, "request_id": "req_" + identity.key, "body": body}
    return _head(identity) | {"response": response, "error": None}


def openai_error(identity: LineIdentity, error: dict[str, Any]) -> dict[str, Any]:
    """The output record of a line that got no answer."""
    return _head(identity) | {"response": None, "error": error}


def _head(identity: LineIdentity) -> dict[str, Any]:
    head: dict[str, Any] = {"id": ID_PREFIX + identity.key, "custom_id": identity.id}
    return head if identity.id is not None else head | {"index": identity.index}


def _usage(request: LineRequest, outputs: Sequence[RequestOutput]) -> dict[str, Any]:
    """Token counts; a prompt counts once, however many samples were made of it, and as it was computed first:
    further samples find it in the cache."""
    n = request.params.n
    prompts = [outputs[i : i + n] for i in range(0, len(outputs), n)]
    prompt_tokens = sum(samples[0].prompt_tokens for samples in prompts)
    cached_tokens = sum(min(out.cached_tokens for out in samples) for samples in prompts)
    completion_tokens = sum(out.completion_tokens for out in outputs)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }


def _ending(output: RequestOutput) -> dict[str, Any]:
    reason = output.finish_reason or {}
    return {"finish_reason": reason.get("type"), "matched_stop": reason.get("matched")}


def _chat_choice(index: int, request: LineRequest, reply: ChatOutput) -> dict[str, Any]:
    output, logprobs = reply.output, None
    if request.logprobs:
        tops = output.output_top_logprobs or itertools.repeat(None)
        content = []
        for token, top in zip(output.output_token_logprobs or (), tops):
            content.append(_chat_token(token) | {"top_logprobs": [_chat_token(t) for t in top or ()]})
        logprobs = {"content": content}
    choice = {"index": index, "message": reply.message, "logprobs": logprobs}
    return choice | _ending(output) | {"finish_reason": reply.finish_reason}


def _chat_token(token: LogprobTriple) -> dict[str, Any]:
    text = token[2] or ""
    # a token that is part of a character has no text, and its bytes are not known here
    data = None if "\ufffd" in text else list(text.encode("utf-8"))
    return {"token": text, "logprob": token[0], "bytes": data}


def _completion_choice(
    index: int, request: LineRequest, output: RequestOutput, tokenizer: Any
) -> dict[str, Any]:
    text = output.text or ""
    if request.echo:
        prompt = request.prompts[index // request.params.n]
        if not isinstance(prompt, str):
            assert not isinstance(prompt, Conversation)  # which have no echo
            prompt = tokenizer.decode(list(prompt), skip_special_tokens=True)
        text = prompt + text
    logprobs = _completion_logprobs(output) if request.logprobs else None
    return {"index": index, "text": text, "logprobs": logprobs} | _ending(output)


def _completion_logprobs(output: RequestOutput) -> dict[str, Any]:
    """Four parallel lists over the tokens (with echo: prompt tokens first, the very first one null)."""
    tokens = [*(output.input_token_logprobs or ()), *(output.output_token_logprobs or ())]
    texts = [token[2] or "" for token in tokens]
    tops = None
    if output.output_top_logprobs is not None:
        tops = [
            None if top is None else {token[2]: token[0] for token in top}
            for top in [*(output.input_top_logprobs or ()), *output.output_top_logprobs]
        ]
    return {
        "tokens": texts,
        "token_logprobs": [token[0] for token in tokens],
        "top_logprobs": tops,
        "text_offset": [0, *itertools.accumulate(map(len, texts))][: len(texts)],
    }
