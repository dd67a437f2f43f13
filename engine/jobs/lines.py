"""From a raw line to a :class:`JobLine`, and from its outcome to a record and back to its identity."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...errors import (
    InvalidParameterError,
    InvalidRequestError,
    RequestTooLongError,
    RootletError,
    TokenizerError,
    UnknownOptionError,
)
from ..chat.conversation import Conversation
from ..requests.encoding import check_unicode
from .identity import DIGEST_BYTES, LineError, LineIdentity, has_openai_form, identity_digest
from .openai_lines import parse_openai
from .openai_results import ID_PREFIX, chat_record, completion_record, openai_error
from .request import JobDefaults, JobLine, Prompt
from .simple_lines import parse_simple, simple_error, simple_record

if TYPE_CHECKING:
    from ..chat.outputs import ChatOutput
    from ..replies.outputs import RequestOutput

logger = logging.getLogger("rootlet.jobs")

MAX_REQUESTS = 4096  # engine requests one line may turn into
_MAX_MESSAGE = 2000  # characters

# most specific first
_CODES: tuple[tuple[type[RootletError], str], ...] = (
    (RequestTooLongError, "request_too_long"),
    (InvalidParameterError, "invalid_parameter"),
    (UnknownOptionError, "unknown_field"),
    (TokenizerError, "tokenizer_error"),
)


def parse_line(identity: LineIdentity, defaults: JobDefaults) -> JobLine:
    """Read what a line asks for; whatever is wrong with it ends up in ``JobLine.error``."""
    body = identity.body
    if body is None:
        return JobLine(identity, is_openai=False, error=identity.error)
    is_openai = has_openai_form(body)
    if identity.error:
        return JobLine(identity, is_openai, error=identity.error)
    try:
        parse = parse_openai if is_openai else parse_simple
        request = parse(body, identity.identity, defaults)
        for prompt in request.prompts:
            _check_unicode(prompt)
        if request.num_samples > MAX_REQUESTS:
            raise InvalidRequestError(
                f"The line asks for {request.num_samples:,} answers (prompts times n), but at most "
                f"{MAX_REQUESTS:,} are given: spread them over several lines."
            )
    except RootletError as error:
        return JobLine(identity, is_openai, error=line_error(error))
    except Exception as error:  # a fault of ours must not stop the other lines
        logger.exception("Line %d could not be read", identity.index + 1)
        return JobLine(identity, is_openai, error=internal_error(error))
    return JobLine(identity, is_openai, request=request)


def line_error(error: RootletError) -> LineError:
    """The record form of an error that concerns one line."""
    code = next((code for kind, code in _CODES if isinstance(error, kind)), "invalid_request")
    return LineError(code, _bounded(str(error)))


def internal_error(error: Exception) -> LineError:
    """The record form of what should not have happened."""
    return LineError("internal_error", _bounded(f"{type(error).__name__}: {error}"))


def _bounded(message: str) -> str:
    """A message that quotes a line does not repeat all of it."""
    return message if len(message) <= _MAX_MESSAGE else message[: _MAX_MESSAGE - 3] + "..."


def answer_record(
    line: JobLine, outputs: Sequence[RequestOutput], replies: Sequence[ChatOutput], tokenizer: Any
) -> dict[str, Any]:
    """The output record of an answered line; ``replies``: what the outputs of a conversation say."""
    assert line.request is not None
    if line.is_openai and line.request.form == "chat":
        return chat_record(line.identity, line.request, replies)
    if line.is_openai:
        return completion_record(line.identity, line.request, outputs, tokenizer)
    return simple_record(line.identity, line.request, outputs)


def error_record(line: JobLine, error: LineError) -> dict[str, Any]:
    """The output record of a line that got no answer.

    A line that is no JSON object has no form of its own: its record satisfies readers of both.
    """
    value = {"code": error.code, "message": error.message, "param": error.param}
    if line.identity.body is None:
        return simple_error(line.identity, value) | {"custom_id": None, "response": None}
    return (openai_error if line.is_openai else simple_error)(line.identity, value)


@dataclass(frozen=True)
class RecordIdentity:
    """What a record says of its line: 16-byte digests, as in LineIdentity, and the error if it is one."""

    identity: bytes
    content: bytes
    error_code: str | None


def identify_record(data: bytes) -> RecordIdentity:
    """Read one line of an output file; raises ValueError saying why it is no record of a job."""
    record = json.loads(data)
    if not isinstance(record, dict):
        raise ValueError("it is not a JSON object")
    key = record.get("key")
    if key is None:
        key = str(record.get("id")).removeprefix(ID_PREFIX)
        line_id = record.get("custom_id")
    else:
        line_id = record.get("id")
    index: Any = record.get("index")
    if line_id is None and not isinstance(index, int):
        raise ValueError("it has neither an id nor an index")
    content = bytes.fromhex(str(key))
    if len(content) != DIGEST_BYTES:
        raise ValueError("it has no key")
    error = record.get("error")
    if error is not None and not isinstance(error, dict):
        raise ValueError("its error is not an object")
    code = None if error is None else str(error.get("code"))
    return RecordIdentity(identity_digest(line_id, index), content, code)


def shared_text(line: JobLine) -> str:
    """A text that begins alike for lines whose prompts begin alike; sorting by it groups them."""
    if line.request is None:
        return ""
    prompt = line.request.prompts[0]
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, Conversation):
        return "".join(f"\x00{role}\x01{text}" for role, text in prompt.lines)
    return " ".join(map(str, prompt))


def _check_unicode(prompt: Prompt) -> None:
    texts: tuple[str, ...] = (prompt,) if isinstance(prompt, str) else ()
    if isinstance(prompt, Conversation):
        texts = tuple(text for _, text in prompt.lines)
    for text in texts:
        check_unicode(text, InvalidParameterError)
