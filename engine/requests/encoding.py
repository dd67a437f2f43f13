"""Prompts to tokens: what cannot fit is refused unread, and what a tokenizer raises is an error of ours."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from ...errors import InvalidRequestError, RequestTooLongError, TokenizerError, is_interrupt
from ..replies.token_text import byte_alphabet

_COMPOSED = 4  # characters that canonical composition makes one of, at most
_NORMALIZERS = {"Prepend": 1, "Lowercase": 1, "NFD": 1, "NFKD": 1, "ByteLevel": 1}
_NORMALIZERS |= {"NFC": _COMPOSED, "NFKC": _COMPOSED}  # name: how many characters may become one
_SPLITTERS = {"ByteLevel", "Metaspace", "Digits", "UnicodeScripts", "Split", "Punctuation"}


class Reach(NamedTuple):
    """How much text a token stands for at most.

    ``chars`` characters; whitespace does not count where ``skips_space``, nor do ``silent`` characters, which
    have no token at all.
    """

    chars: int
    skips_space: bool
    silent: str

    def least_tokens(self, text: str) -> int:
        """As how few tokens ``text`` can come out."""
        if self.silent:
            text = text.translate(dict.fromkeys(map(ord, self.silent)))
        size = sum(map(len, text.split())) if self.skips_space else len(text)
        return -(-size // self.chars)


class TextEncoder:
    """Encodes prompts. Any thread may call.

    Args:
        tokenizer: a transformers tokenizer, or None: then texts are refused.
        max_tokens: prompts that must have more are refused before they are read; None: no limit.
        truncates: they are cut instead, to a beginning that has more tokens than that.
    """

    def __init__(self, tokenizer: Any, max_tokens: int | None = None, *, truncates: bool = False) -> None:
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._truncates = truncates

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of one text.

        Raises InvalidRequestError without a tokenizer and for text that is no Unicode, RequestTooLongError,
        TokenizerError.
        """
        text = self._checked(text)
        return list(self._call(self._tokenizer.encode, text, add_special_tokens=add_special_tokens))

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of many texts, with special tokens; raises as :meth:`encode`."""
        texts = [self._checked(text) for text in texts]
        return [list(ids) for ids in self._call(self._tokenizer, texts)["input_ids"]] if texts else []

    def _checked(self, text: str) -> str:
        if self._tokenizer is None:
            raise InvalidRequestError(
                "The engine initialized with skip_tokenizer_init=True cannot accept text prompts."
                " It has no tokenizer: please provide token ids (input_ids, or lists of ids to score), or"
                " build it without skip_tokenizer_init."
            )
        if self._max_tokens is not None and len(text) > self._max_tokens and self._reach is not None:
            text = self._fitting(text, self._reach, self._max_tokens)
        check_unicode(text)
        return text

    def _fitting(self, text: str, reach: Reach, max_tokens: int) -> str:
        least = reach.least_tokens(text)
        if least <= max_tokens:
            return text
        if self._truncates and not (reach.skips_space or reach.silent):
            return text[: (max_tokens + 1) * reach.chars]
        raise RequestTooLongError(
            f"The input of {len(text):,} characters has at least {least:,} tokens, for none stands for more"
            f" than {reach.chars} characters; the engine takes {max_tokens:,} (context length and KV pool)."
            " Shorten it."
        )

    def _call(self, function: Any, *args: Any, **options: Any) -> Any:
        try:
            return function(*args, **options)
        except BaseException as error:  # tokenizers come with models, and may be programs of their authors
            if is_interrupt(error):
                raise
            raise TokenizerError(f"The model's tokenizer cannot read this prompt: {error!r}.") from error

    @cached_property
    def _reach(self) -> Reach | None:
        return reach_of(self._tokenizer)


def check_unicode(text: str, refusal: type[Exception] = InvalidRequestError) -> None:
    """Raise ``refusal`` for half a surrogate pair in a prompt: JSON can write one, no token stands for it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise refusal(
            f"The prompt is not valid Unicode: character {error.start} is a lone surrogate."
        ) from error


def reach_of(tokenizer: Any) -> Reach | None:
    """How much text a token of ``tokenizer`` stands for at most; None if it may be any amount.

    Known of byte-level BPE and BPE with byte fallback where the steps before it drop nothing.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not type(tokenizer).__module__.startswith("transformers."):
        return None
    if type(backend.model).__name__ != "BPE" or backend.truncation is not None:
        return None
    shrink = 1
    normalizers = list(_steps(backend.normalizer, "normalizers"))
    for step in normalizers:
        if step["type"] == "Replace":
            pattern = step["pattern"].get("String")
            if pattern is None or len(pattern) > len(step["content"]):
                return None
        elif step["type"] in _NORMALIZERS:
            shrink = max(shrink, _NORMALIZERS[step["type"]])
        else:
            return None
    splitters = list(_steps(backend.pre_tokenizer, "pretokenizers"))
    if any(step["type"] not in _SPLITTERS or step.get("behavior") == "Removed" for step in splitters):
        return None
    vocabulary = backend.get_vocab(with_added_tokens=True)
    silent = ""
    if backend.model.byte_fallback:
        if not all(f"<0x{byte:02X}>" in vocabulary for byte in range(256)):
            return None  # unknown characters may vanish, or become one token together
    elif not any(step["type"] == "ByteLevel" for step in [*normalizers, *splitters]):
        return None
    else:
        missing = [byte for piece, byte in byte_alphabet().items() if piece not in vocabulary]
        if backend.model.unk_token is not None and missing:
            return None
        silent = "".join(chr(byte) for byte in missing if byte < 0x80)
        if any(0x80 <= byte < 0xC0 for byte in missing):  # one of these is in every character beyond ASCII
            return None
    added = backend.get_added_tokens_decoder().values()
    swallows = any(token.lstrip or token.rstrip for token in added)
    return Reach(max(map(len, vocabulary)) * shrink, swallows, silent)


def _steps(component: Any, name: str) -> Iterable[dict[str, Any]]:
    """The steps of a normalizer or a pre-tokenizer, sequences unfolded."""
    if component is None:
        return
    pending = [json.loads(component.__getstate__())]
    while pending:
        step = pending.pop()
        if step["type"] == "Sequence":
            pending += step[name]
        else:
            yield step
