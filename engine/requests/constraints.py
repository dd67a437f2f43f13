"""Constraints of requests: which backend compiles them, and for which tokens."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from ...errors import InvalidRequestError
from ...grammar.budget import DEFAULT_SECONDS
from ...grammar.compiler import GrammarCompiler
from ...grammar.constraint import Constraint
from ...grammar.interface import Backend, Vocabulary
from ...grammar.llguidance_backend import LlguidanceBackend
from ...grammar.xgrammar_backend import XGrammarBackend
from ...sampling.params import CONSTRAINTS
from ..replies.token_text import TokenPieces
from ..schedule.drafts.forced_text import ForcedText

if TYPE_CHECKING:
    from ...grammar.compiler import Compilation
    from ...sampling.params import SamplingParams

_BACKENDS: Mapping[str, Callable[[Callable[[], Vocabulary]], Backend]] = {
    "xgrammar": XGrammarBackend,
    "llguidance": LlguidanceBackend,
}


def constraint_of(params: SamplingParams) -> Constraint | None:
    """What ``params`` ask of the output, None if they leave it free."""
    for kind in CONSTRAINTS:
        value = getattr(params, kind)
        if value is not None:
            return Constraint(kind, value if isinstance(value, str) else json.dumps(value))
    return None


class Constraints:
    """Compiles what requests ask for; any thread may call.

    Args:
        backend: "xgrammar" or "llguidance".
        tokenizer: a transformers tokenizer, or None: then constraints are refused.
        vocab_size: of the model, which may be larger than the tokenizer's.
        eos_token_ids: what ends an output.
        seconds: of CPU time that compiling one constraint may take; steps and bytes are in proportion.

    Raises MissingDependencyError if the backend is not installed.
    """

    def __init__(
        self,
        backend: str,
        tokenizer: Any,
        vocab_size: int,
        eos_token_ids: tuple[int, ...],
        seconds: float = DEFAULT_SECONDS,
    ) -> None:
        self._tokenizer = tokenizer
        self._has_end = bool(eos_token_ids)
        pieces = self._pieces = None if tokenizer is None else TokenPieces.of(tokenizer)
        self._compiler: GrammarCompiler | None = None
        if pieces is not None:
            self._cut = partial(_cut, tokenizer, pieces)
            make = _vocabulary(self._cut, pieces, vocab_size, eos_token_ids)
            self._compiler = GrammarCompiler(_BACKENDS[backend](make), seconds)

    def grammar(self, params: SamplingParams) -> Compilation | None:
        """The grammar of a request, compiled or being compiled; None if it has no constraint.

        Raises InvalidRequestError if this engine cannot constrain anything.
        """
        constraint = constraint_of(params)
        if constraint is None:
            return None
        if self._tokenizer is None:
            raise InvalidRequestError(
                f"{constraint.kind} needs a tokenizer, and the engine has none (skip_tokenizer_init=True)."
            )
        if self._compiler is None:
            raise InvalidRequestError(
                f"{constraint.kind} needs tokens that stand for fixed bytes (byte-level BPE, or SentencePiece"
                f" with byte fallback), and those of {type(self._tokenizer).__name__} do not."
            )
        if not self._has_end:
            raise InvalidRequestError(
                f"{constraint.kind} needs an end-of-sequence token to end with, and the model has none."
            )
        return self._compiler.compile(constraint)

    def work_beside(self, is_busy: Callable[[], bool]) -> None:
        """Compile slowly while the engine ``is_busy``: it wants the interpreter too."""
        if self._compiler is not None:
            self._compiler.is_busy = is_busy

    def forced_text(self) -> ForcedText | None:
        """Forecasts what constraints force; None where nothing can be constrained."""
        return None if self._pieces is None else ForcedText(self._cut)

    def clear(self) -> None:
        """Forget compiled grammars."""
        if self._compiler is not None:
            self._compiler.clear()

    def close(self) -> None:
        """End the compiling threads."""
        if self._compiler is not None:
            self._compiler.close()


def _cut(tokenizer: Any, pieces: TokenPieces, text: str) -> list[int]:
    """``text`` as tokens of exactly its bytes, within a longer text; nothing if there is no such cut."""
    wanted = text.encode()
    ids = tokenizer.encode(text, add_special_tokens=False)
    if b"".join(map(pieces.__getitem__, ids)) == wanted:
        return ids
    # a SentencePiece tokenizer puts a space in front of a text: let that stand before a line break
    ids = tokenizer.encode("\n" + text, add_special_tokens=False)
    for first in range(1, len(ids)):
        if b"".join(map(pieces.__getitem__, ids[first:])) == wanted:
            return ids[first:]
    return []


def _vocabulary(
    cut: Callable[[str], list[int]],
    pieces: TokenPieces,
    vocab_size: int,
    eos_token_ids: tuple[int, ...],
) -> Callable[[], Vocabulary]:
    """Makes the vocabulary when the first constraint needs it."""
    ends = tuple(token for token in eos_token_ids if token < vocab_size)

    def make() -> Vocabulary:
        hidden = pieces.special_ids | set(ends)
        tokens = [b"" if token in hidden else pieces[token] for token in range(vocab_size)]
        return Vocabulary(tokens, ends, cut)

    return make
