"""Texts that no tokenizer can read."""

from __future__ import annotations

from ..errors import InvalidRequestError


def check_unicode(what: str, text: str) -> None:
    """Raise InvalidRequestError if ``text`` holds half a surrogate pair, which JSON and Python can write."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequestError(
            f"{what} is not valid Unicode: a lone surrogate at character {error.start}."
        ) from error
