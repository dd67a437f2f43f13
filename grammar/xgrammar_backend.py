"""Constraints by xgrammar: masks kept per place of the grammar, made once when it is compiled."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import GrammarError
from .constraint import Constraint
from .interface import Vocabulary
from .notation import as_ebnf

if TYPE_CHECKING:
    import numpy as np


class XGrammarBackend:
    """Compiles rules with xgrammar, which is loaded at the first use; ``vocabulary`` is called then."""

    def __init__(self, vocabulary: Callable[[], Vocabulary]) -> None:
        self._vocabulary = vocabulary
        self._lock = threading.Lock()
        self._compiler: Any = None

    def compile(self, constraint: Constraint) -> XGrammar:
        """Raises GrammarError for what is invalid or not supported."""
        text = as_ebnf(constraint.rules())
        with self._lock:
            if self._compiler is None:
                self._compiler = self._load()
        try:
            return XGrammar(self._compiler.compile_grammar(text))
        except RuntimeError as error:  # a size it cannot take: the rules themselves are in order
            raise GrammarError(f"{constraint.kind}: xgrammar refuses it: {str(error).strip()}") from None

    def _load(self) -> Any:
        import xgrammar

        vocabulary = self._vocabulary()
        info = xgrammar.TokenizerInfo(
            vocabulary.tokens,
            vocab_type=xgrammar.VocabType.RAW,
            vocab_size=len(vocabulary.tokens),
            stop_token_ids=list(vocabulary.stop_token_ids),
        )
        # our own cache is by constraint; threads end with each compilation
        return xgrammar.GrammarCompiler(info, max_threads=min(8, os.cpu_count() or 1), cache_enabled=False)


class XGrammar:
    """A compiled grammar."""

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled

    def matcher(self) -> XGrammarMatcher:
        """A matcher at the beginning."""
        import xgrammar

        return XGrammarMatcher(xgrammar.GrammarMatcher(self._compiled))


class XGrammarMatcher:
    """Where one request stands."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    def fill(self, masks: np.ndarray, row: int) -> None:
        """Write the allowed tokens to a row of ``masks``."""
        self._matcher.fill_next_token_bitmask(masks, row)

    def accept(self, token_id: int) -> bool:
        """Take the next token; False if it is not allowed."""
        return not self._matcher.is_terminated() and self._matcher.accept_token(token_id)

    def rollback(self, count: int) -> None:
        """Take back the last ``count`` tokens."""
        self._matcher.rollback(count)

    def forced_text(self) -> str:
        """What any output must go on with."""
        if self.is_terminated:
            return ""
        try:
            return self._matcher.find_jump_forward_string()
        except UnicodeDecodeError:  # what is forced ends within a character
            return ""

    @property
    def is_terminated(self) -> bool:
        """True once a stop token was accepted."""
        return self._matcher.is_terminated()
