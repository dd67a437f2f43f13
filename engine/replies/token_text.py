"""Token ids to text, a few at a time: what may be shown so far, and what is still incomplete.

Two decoders share one small interface, :class:`IncrementalText`:

* :class:`PieceText` for tokenizers in which every token stands for fixed bytes whatever its
  neighbours (byte-level BPE and SentencePiece with byte fallback: the Llama, Qwen and Mistral
  families). A token costs one table look-up, however long the output has become.
* :class:`WindowText` for every other tokenizer. It decodes a short window of recent tokens again,
  so a token costs the decoding of at most ``_MAX_WINDOW`` tokens.

Neither removes spaces before punctuation ("clean up" in transformers): the text is what the model wrote.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Sequence
from typing import Any, Protocol

_REPLACEMENT = "\ufffd"  # what decoders put in place of bytes that are not (yet) a character
_MAX_TAIL = 3  # a UTF-8 character has at most 4 bytes, so at most 3 of an incomplete one
_CONTEXT = 4  # tokens kept in front of new ones so that a decoder sees its neighbours
_MAX_WINDOW = 8  # tokens decoded together before the window slides
_PROBES = 64  # ids compared with the tokenizer before a piece table is trusted
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class IncrementalText(Protocol):
    """Turns token ids into text as they come; what it returned once never changes."""

    def feed(self, token_ids: Sequence[int]) -> str:
        """Take the next tokens and return the text that became complete (possibly empty)."""

    def flush(self) -> str:
        """Return the incomplete rest as U+FFFD; nothing may be fed afterwards."""


class TokenPieces:
    """The bytes each token stands for, for one tokenizer; looked up lazily and remembered.

    ``strips_space`` says that the decoder drops one space at the very start of a text, as
    SentencePiece tokenizers do, which put that space there when encoding.
    """

    def __init__(self, backend: Any, *, byte_level: bool, strips_space: bool) -> None:
        self.strips_space = strips_space
        self.special_ids = frozenset(i for i, t in backend.get_added_tokens_decoder().items() if t.special)
        self._backend = backend
        self._alphabet = byte_alphabet() if byte_level else None
        self._pieces: dict[int, bytes] = {}

    @classmethod
    def of(cls, tokenizer: Any) -> TokenPieces | None:
        """Build the table for a transformers tokenizer, or return None if its tokens have no fixed bytes.

        Recognised are the two decoders below; a sample of the vocabulary is then compared with
        ``tokenizer.decode`` because a tokenizer class may add steps of its own.
        """
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None or backend.decoder is None:
            return None
        steps = json.loads(backend.decoder.__getstate__())
        steps = [_signature(step) for step in steps.get("decoders", [steps])]
        if steps == ["ByteLevel"]:
            pieces = cls(backend, byte_level=True, strips_space=False)
        elif steps[:3] == ["Replace ▁", "ByteFallback", "Fuse"] and steps[3:] in ([], ["Strip"]):
            pieces = cls(backend, byte_level=False, strips_space=len(steps) == 4)
        else:
            return None
        return pieces if pieces._agrees_with(tokenizer) else None

    def __getitem__(self, token_id: int) -> bytes:
        """Bytes of one token; ids outside the vocabulary (padding rows of a model) stand for nothing."""
        piece = self._pieces.get(token_id)
        if piece is None:
            piece = self._pieces[token_id] = self._compute(self._backend.id_to_token(token_id))
        return piece

    def _compute(self, token: str | None) -> bytes:
        if token is None:
            return b""
        if self._alphabet is not None:
            try:
                return bytes(map(self._alphabet.__getitem__, token))
            except KeyError:  # an added token, written as plain text
                return token.encode()
        token = token.replace("▁", " ")
        byte = _BYTE_TOKEN.fullmatch(token)
        return bytes([int(byte[1], 16)]) if byte else token.encode()

    def _agrees_with(self, tokenizer: Any) -> bool:
        size = self._backend.get_vocab_size(with_added_tokens=True)
        sample = sorted({*range(0, size, max(1, size // _PROBES)), *self.special_ids})
        # Only whole characters: the tokenizers library spoils the good neighbours of a bad byte token.
        sample = [
            i
            for i in sample
            if self[i].isascii() and not _BYTE_TOKEN.fullmatch(str(tokenizer.convert_ids_to_tokens(i)))
        ]
        for skip in (False, True):
            text = PieceText(self, skip_special_tokens=skip)
            expected = tokenizer.decode(sample, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
            if text.feed(sample) + text.flush() != expected:
                return False
        return True


class PieceText:
    """Incremental text of a tokenizer whose tokens are fixed bytes: concatenate and decode as UTF-8.

    ``prompt_ids`` are the tokens in front (a few suffice); they only decide whether the first
    token keeps its leading space. An incomplete character stays inside until its last byte comes;
    invalid bytes become U+FFFD, one for each maximal invalid part (Unicode 15, section 3.9).
    """

    def __init__(
        self, pieces: TokenPieces, *, skip_special_tokens: bool, prompt_ids: Sequence[int] = ()
    ) -> None:
        self._pieces = pieces
        self._skip = pieces.special_ids if skip_special_tokens else frozenset()
        self._strip = pieces.strips_space and not any(pieces[i] for i in prompt_ids if i not in self._skip)
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token_ids: Sequence[int]) -> str:
        """Take the next tokens and return the text that became complete."""
        return self._decode(b"".join([self._pieces[i] for i in token_ids if i not in self._skip]))

    def flush(self) -> str:
        """Return U+FFFD if the text ends inside a character, else nothing."""
        return self._decode(b"", final=True)

    def _decode(self, data: bytes, final: bool = False) -> str:
        text = self._utf8.decode(data, final)
        if self._strip and text:
            self._strip = False
            return text.removeprefix(" ")
        return text


class WindowText:
    """Incremental text of any tokenizer, by decoding a window of recent tokens again and again.

    ::

        window:  [ context: shown already | new tokens ]
        text:    [ ......... shown .......|... new ...|U+FFFD, held back ]

    What was shown is counted in characters. When the window slides, it is aligned from its end,
    because a decoder may treat its first token specially (it drops a space, or half a character).
    """

    def __init__(self, tokenizer: Any, *, prompt_ids: Sequence[int] = (), **options: bool) -> None:
        self._tokenizer = tokenizer
        self._options = options
        self._window = list(prompt_ids[-_CONTEXT:])
        self._shown = len(self._decode(self._window))

    def feed(self, token_ids: Sequence[int]) -> str:
        """Take the next tokens and return the text that became complete."""
        self._window.extend(token_ids)
        text = self._decode(self._window)
        end = max(len(text) - _incomplete_tail(text), self._shown)
        new = text[self._shown : end]
        self._shown = end
        if len(self._window) > _MAX_WINDOW:
            self._slide(text)
        return new

    def flush(self) -> str:
        """Return what was held back because it ends in U+FFFD."""
        return self._decode(self._window)[self._shown :]

    def _slide(self, text: str) -> None:
        held_back = len(text) - self._shown
        for size in range(_CONTEXT, len(self._window) + 1):
            # A window that begins inside a character decodes to something else, and one of skipped special
            # tokens to nothing, although characters are held back: take one token more.
            context = self._decode(self._window[-size:])
            if len(context) >= held_back and text.endswith(context):
                break
        self._window = self._window[-size:]
        self._shown = max(len(context) - held_back, 0)

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, clean_up_tokenization_spaces=False, **self._options)


def _incomplete_tail(text: str) -> int:
    tail = 0
    while tail < _MAX_TAIL and text.endswith(_REPLACEMENT, 0, len(text) - tail):
        tail += 1
    return tail


def _signature(step: dict[str, Any]) -> str:
    """Name a decoder step of tokenizer.json; steps that do more than the name says get another one."""
    kind = step["type"]
    if kind == "Replace":
        return "Replace ▁" if (step["pattern"], step["content"]) == ({"String": "▁"}, " ") else "other"
    if kind == "Strip":
        return "Strip" if (step["content"], step["start"], step["stop"]) == (" ", 1, 0) else "other"
    return kind


def byte_alphabet() -> dict[str, int]:
    """Map each character of byte-level BPE to its byte.

    The format is GPT-2's: printable Latin-1 bytes stand for themselves, the other ones, in order,
    for the code points from 256 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}
