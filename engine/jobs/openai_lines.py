"""OpenAI batch lines: ``{"custom_id", "method": "POST", "url", "body": {...}}``.

``url`` is ``/v1/chat/completions`` or ``/v1/completions``. Every field of the body is used, or refused by
name. Those that change no answer are checked and let through: ``user``, ``safety_identifier``,
``prompt_cache_key``, ``prompt_cache_retention``, and the values of ``_ONLY``, which ask for nothing;
``model`` and ``metadata`` are echoed. A field that is null counts as absent. Beyond OpenAI's fields the
sampling extensions ``top_k``, ``min_p``, ``min_tokens``, ``repetition_penalty``, ``stop_token_ids``,
``ignore_eos``, ``no_stop_trim``, ``skip_special_tokens`` and the constraints ``json_schema``, ``regex``,
``ebnf``, ``choice`` and ``structural_tag`` work. Chats take ``tools``, ``tool_choice``,
``parallel_tool_calls`` and ``response_format``.
"""

from __future__ import annotations

import json
from typing import Any

from ...errors import InvalidParameterError, InvalidRequestError, short, unknown_option
from ...sampling.params import CONSTRAINTS
from ..chat.conversation import Conversation
from ..chat.options import ChatOptions
from .request import JobDefaults, LineLogprobs, LineRequest, Prompt, check_prompt, check_type

CHAT_URL = "/v1/chat/completions"
COMPLETION_URL = "/v1/completions"
_LINE_FIELDS = ("custom_id", "method", "url", "body")

# body field -> sampling parameter
_SAMPLING = {
    name: name
    for name in (
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "n",
        "seed",
        "stop",
        "stop_token_ids",
        "frequency_penalty",
        "presence_penalty",
        "repetition_penalty",
        "logit_bias",
        "ignore_eos",
        "no_stop_trim",
        "skip_special_tokens",
        *CONSTRAINTS,
    )
} | {"max_tokens": "max_new_tokens", "min_tokens": "min_new_tokens"}
_CHAT_SAMPLING = _SAMPLING | {"max_completion_tokens": "max_new_tokens"}

_CHAT_OPTIONS = (
    "tools",
    "tool_choice",
    "response_format",
    "parallel_tool_calls",
)  # in ChatOptions.read's order
_TEXTS = ("model", "user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention")
# fields of the API of which some values ask for nothing; others would ask for what is not there
_ONLY: dict[str, tuple[Any, ...]] = {
    "stream": (False,),
    "store": (False,),
    "service_tier": ("auto", "default"),
    "modalities": (["text"],),
    "verbosity": ("medium",),
    "functions": ([],),
    "suffix": ("",),
}
_COMMON = (*_TEXTS, *_ONLY, "metadata", "logprobs")
_CHAT_FIELDS = (*_CHAT_SAMPLING, *_COMMON, "messages", "top_logprobs", *_CHAT_OPTIONS)
_COMPLETION_FIELDS = (*_SAMPLING, *_COMMON, "prompt", "echo", "best_of")

# fields of the documented API that nothing here implements
_UNSUPPORTED = (
    *("function_call", "stream_options", "audio", "prediction", "reasoning_effort", "moderation"),
    *("prompt_cache_options", "web_search_options", "lora_path", "session_params"),
)

CHAT_DEFAULTS = {"temperature": 0.7, "max_new_tokens": None}
COMPLETION_DEFAULTS = {"temperature": 1.0, "max_new_tokens": 16}


def parse_openai(line: dict[str, Any], identity: bytes, defaults: JobDefaults) -> LineRequest:
    """Read an OpenAI batch line; raises a RootletError that names the wrong field."""
    for name in line:
        if name not in _LINE_FIELDS:
            raise unknown_option("field of a batch line", name, _LINE_FIELDS)
    if line.get("method", "POST") != "POST":
        raise InvalidRequestError(f"method must be 'POST', got {line['method']!r}.")
    url = line.get("url")
    if url not in (CHAT_URL, COMPLETION_URL):
        raise InvalidRequestError(f"url must be {CHAT_URL!r} or {COMPLETION_URL!r}, got {url!r}.")
    body = check_type("body", line.get("body"), dict, "an object")
    body = {name: value for name, value in body.items() if value is not None}
    is_chat = url == CHAT_URL
    _check_fields(body, _CHAT_FIELDS if is_chat else _COMPLETION_FIELDS)
    return (_parse_chat if is_chat else _parse_completion)(body, identity, defaults)


def _parse_chat(body: dict[str, Any], identity: bytes, defaults: JobDefaults) -> LineRequest:
    if "messages" not in body:
        raise InvalidRequestError("messages is required.")
    sampling = _sampling(body, _CHAT_SAMPLING)
    logprobs = None
    if check_type("logprobs", body.get("logprobs", False), bool, "true or false"):
        top = check_type("top_logprobs", body.get("top_logprobs", 0), int, "an integer")
        logprobs = LineLogprobs(top_logprobs_num=top)
    elif body.get("top_logprobs", 0) != 0:
        raise InvalidRequestError("top_logprobs needs logprobs to be true.")
    return LineRequest(
        form="chat",
        prompts=(Conversation.from_json(body["messages"]),),
        params=_merge(defaults, CHAT_DEFAULTS, sampling, identity, body, _CHAT_SAMPLING),
        logprobs=logprobs,
        model=body.get("model"),
        metadata=body.get("metadata"),
        chat=ChatOptions.read(*(body.get(name) for name in _CHAT_OPTIONS)),
    )


def _parse_completion(body: dict[str, Any], identity: bytes, defaults: JobDefaults) -> LineRequest:
    if "prompt" not in body:
        raise InvalidRequestError("prompt is required.")
    sampling = _sampling(body, _SAMPLING)
    params = _merge(defaults, COMPLETION_DEFAULTS, sampling, identity, body, _SAMPLING)
    if body.get("best_of", params.n) != params.n:
        raise InvalidRequestError(f"best_of is supported only when it equals n ({params.n}).")
    echo = check_type("echo", body.get("echo", False), bool, "true or false")
    logprobs = None
    if "logprobs" in body:
        top = check_type("logprobs", body["logprobs"], int, "an integer")
        logprobs = LineLogprobs(logprob_start_len=0 if echo else -1, top_logprobs_num=top)
    return LineRequest(
        form="completion",
        prompts=_prompts(body["prompt"]),
        params=params,
        logprobs=logprobs,
        echo=echo,
        model=body.get("model"),
        metadata=body.get("metadata"),
    )


def _check_fields(body: dict[str, Any], known: tuple[str, ...]) -> None:
    for name in body:
        if name in _UNSUPPORTED:
            raise InvalidRequestError(f"{name} is not supported in a job.")
        if name not in known:
            raise unknown_option("request field", name, known)
    for name in _TEXTS:
        if name in body:
            check_type(name, body[name], str, "a string")
    for name, allowed in _ONLY.items():
        if name in body and not any(type(body[name]) is type(one) and body[name] == one for one in allowed):
            values = " or ".join(json.dumps(one) for one in allowed)
            raise InvalidRequestError(
                f"{name} is not supported in a job: leave it out or set it to {values}, got"
                f" {short(body[name])}."
            )
    metadata = check_type("metadata", body.get("metadata", {}), dict, "an object")
    for name, value in metadata.items():
        check_type(f"metadata[{short(name)}]", value, str, "a string")


def _sampling(body: dict[str, Any], fields: dict[str, str]) -> dict[str, Any]:
    """The body's sampling parameters under our names."""
    if body.get("max_tokens", body.get("max_completion_tokens")) != body.get(
        "max_completion_tokens", body.get("max_tokens")
    ):
        raise InvalidRequestError("max_tokens and max_completion_tokens contradict each other: give one.")
    return {ours: body[name] for name, ours in fields.items() if name in body}


def _merge(
    defaults: JobDefaults,
    form: dict[str, Any],
    sampling: dict[str, Any],
    identity: bytes,
    body: dict[str, Any],
    fields: dict[str, str],
) -> Any:
    """Merged parameters; an error message speaks of the field by the name the line used."""
    try:
        return defaults.merge(form, sampling, identity)
    except InvalidParameterError as error:
        message = str(error)
        for name, ours in fields.items():
            if name in body and name != ours and message.startswith(f"{ours} "):
                message = name + message.removeprefix(ours)
        raise InvalidParameterError(message) from error


def _prompts(value: object) -> tuple[Prompt, ...]:
    """The four forms of ``prompt``: a text, token ids, or a list of either."""
    if isinstance(value, list) and value and isinstance(value[0], (str, list)):
        return tuple(check_prompt(f"prompt[{i}]", item) for i, item in enumerate(value))
    return (check_prompt("prompt", value),)
