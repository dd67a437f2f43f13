"""``response_format`` as the OpenAI API writes it, as a JSON schema."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ...errors import InvalidParameterError, InvalidRequestError, short
from ...sampling.params import SamplingParams

_FIELDS: Final = {"text": ("type",), "json_object": ("type",), "json_schema": ("type", "json_schema")}
_SCHEMA_FIELDS: Final = {"schema": object, "name": str, "description": str, "strict": bool}


def read_response_format(value: object) -> str | None:
    """The schema of the answer as a JSON text, None for free text. A Pydantic model stands for its schema.

    Raises InvalidRequestError, or InvalidParameterError for what the parameter ``json_schema`` does not take.
    """
    if value is None:
        return None
    if callable(getattr(value, "model_json_schema", None)):
        return _schema_text(value)
    fields = value if isinstance(value, Mapping) else {}
    kind = fields.get("type")
    if not isinstance(kind, str) or kind not in _FIELDS:
        raise InvalidRequestError(
            "response_format.type must be 'text', 'json_object' or 'json_schema', got"
            f" {short(value if kind is None else kind)}."
        )
    _check_fields("response_format", fields, _FIELDS[kind])
    if kind == "text":
        return None
    if kind == "json_object":
        return _schema_text({"type": "object"})
    given = fields.get("json_schema")
    if not isinstance(given, Mapping) or given.get("schema") is None:
        raise InvalidRequestError(
            "response_format.json_schema.schema must be an object (a JSON schema), its JSON text or a"
            f" Pydantic model; got {short(given)}."
        )
    _check_fields("response_format.json_schema", given, tuple(_SCHEMA_FIELDS))
    for name, wanted in _SCHEMA_FIELDS.items():
        if given.get(name) is not None and not isinstance(given[name], wanted):
            raise InvalidRequestError(
                f"response_format.json_schema.{name} must be a {wanted.__name__}, got {short(given[name])}."
            )
    return _schema_text(given["schema"])


def _check_fields(where: str, value: Mapping, known: tuple[str, ...]) -> None:
    for name in value:
        if name not in known and value[name] is not None:
            raise InvalidRequestError(f"{where}.{name} is not supported; there are {', '.join(known)}.")


def _schema_text(schema: Any) -> str:
    try:
        text = SamplingParams(json_schema=schema).json_schema
    except InvalidParameterError as error:
        raise InvalidParameterError(f"response_format: {error}") from error
    assert isinstance(text, str)
    return text
