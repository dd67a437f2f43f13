"""Records as one line of JSON."""

from __future__ import annotations

import json
import math
from typing import Any


def encode_record(record: dict[str, Any]) -> bytes:
    """One record as UTF-8 JSON, without a line end.

    Lone surrogates are written as \\u escapes. JSON has no infinities: the log-probability of an
    impossible token is written as -9999.0, as OpenAI does, any other number that is not finite as null.
    """
    try:
        text = json.dumps(record, ensure_ascii=False, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(record), ensure_ascii=False, allow_nan=False)
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(json.loads(text), ensure_ascii=True).encode("ascii")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return -9999.0 if value < 0 else None
    return value
