"""Who a line is, and what it says: the two digests a resumed job compares.

* identity: from the line's ``id`` / ``custom_id``, or from its position if it has none;
* content: from everything the line says, in canonical JSON (key order and white space do not count),
  or from the raw bytes if it is not a JSON object.

Both are BLAKE2b (RFC 7693) with 16-byte digests. The content digest in hex is the record's ``key``.
"""

from __future__ import annotations

import collections
import hashlib
import json
import math
from dataclasses import dataclass
from typing import Any, NoReturn

from .bounds import MAX_ID_CHARS, refusal
from .input_file import RawLine

DIGEST_BYTES = 16


@dataclass(frozen=True)
class LineError:
    """Why a line got an error record: a stable ``code``, a sentence, and the field to blame if one is."""

    code: str
    message: str
    param: str | None = None


@dataclass(frozen=True)
class LineIdentity:
    """What is known of a line before its request is looked at.

    ``id`` is what the line calls itself (None: nothing usable); ``body`` its JSON object, or None with
    ``error`` saying why there is none. ``identity`` and ``content`` are 16-byte digests.
    """

    index: int
    id: str | int | None
    identity: bytes
    content: bytes
    body: dict[str, Any] | None
    error: LineError | None
    nbytes: int

    @property
    def key(self) -> str:
        """The content digest as 32 hex digits, as written into the output record."""
        return self.content.hex()


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite_float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:40]} is out of range")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = collections.Counter(name for name, _ in pairs)
        name = next(name for name, count in names.items() if count > 1)
        raise ValueError(f"the name {name[:80]!r} is given twice in one object")
    return value


_DECODER = json.JSONDecoder(
    parse_constant=_reject_constant, parse_float=_finite_float, object_pairs_hook=_object
)


def identify(line: RawLine) -> LineIdentity:
    """Decode one line and compute its digests; never raises for bad content."""
    body, error = _decode(line)
    line_id = None
    if body is None:
        content = digest(line.data)
    else:
        content = digest(canonical(body))
        line_id, error = _line_id(body)
    identity = identity_digest(line_id, line.index)
    return LineIdentity(line.index, line_id, identity, content, body, error, len(line.data))


def identity_digest(line_id: str | int | None, index: int) -> bytes:
    """Digest that names a line: its id if it has one (``7`` and ``"7"`` differ), else its position."""
    name = f"#{index}" if line_id is None else json.dumps(line_id)
    return digest(name.encode())


def digest(data: bytes) -> bytes:
    """16-byte BLAKE2b digest."""
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()


def canonical(value: object) -> bytes:
    """One byte string per JSON value, whatever the order of keys and the spacing."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", errors="surrogatepass")


def has_openai_form(body: dict[str, Any]) -> bool:
    """Whether a line is meant as an OpenAI batch line rather than a simple one."""
    return any(name in body for name in ("custom_id", "body", "url", "method"))


def _decode(line: RawLine) -> tuple[dict[str, Any] | None, LineError | None]:
    if line.oversized:
        return None, LineError("line_too_long", f"The line has {line.oversized} bytes; too long to be read.")
    if why := refusal(line.data):
        return None, LineError("invalid_json", f"The line is not read: {why}.")
    try:
        value = _DECODER.decode(line.data.decode("utf-8").strip())
    except UnicodeDecodeError as error:
        return None, LineError(
            "invalid_json", f"The line is not UTF-8: {error.reason} at byte {error.start}."
        )
    except ValueError as error:
        hint = " Lines must end with LF or CRLF, not CR." if b"\r" in line.data else ""
        return None, LineError("invalid_json", f"The line is not valid JSON: {error}.{hint}")
    if not isinstance(value, dict):
        return None, LineError("invalid_json", f"The line is a JSON {type(value).__name__}, not an object.")
    return value, None


def _line_id(body: dict[str, Any]) -> tuple[str | int | None, LineError | None]:
    """The id a line gives itself, or the error that it gives an unusable one."""
    kinds: tuple[type, ...]
    field, kinds, wanted = "id", (str, int), "a string or an integer"
    if has_openai_form(body):
        field, kinds, wanted = "custom_id", (str,), "a string"
    value = body.get(field)
    if value is None:
        return None, None
    if isinstance(value, bool) or not isinstance(value, kinds):
        message = f"{field!r} must be {wanted}, got {type(value).__name__}."
        return None, LineError("invalid_request", message, field)
    if len(str(value)) > MAX_ID_CHARS:
        message = f"{field!r} must have at most {MAX_ID_CHARS} characters, got {len(str(value)):,}."
        return None, LineError("invalid_request", message, field)
    return value, None
