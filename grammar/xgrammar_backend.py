"""Constraints by xgrammar: masks kept per place of the grammar, made once when it is compiled."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import GrammarError
from .budget import Budget
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
        self._stops: frozenset[int] = frozenset()

    def compile(self, constraint: Constraint, budget: Budget | None = None) -> XGrammar:
        """Raises GrammarError for what is invalid, not supported or out of budget."""
        import xgrammar

        budget = budget or Budget()
        text = as_ebnf(constraint.rules(budget), budget)
        with self._lock:
            if self._compiler is None:
                self._compiler = self._load()
        try:
            compiled = self._compiler.compile_grammar(text)
        except RuntimeError as error:  # a size it cannot take: the rules themselves are in order
            raise GrammarError(f"{constraint.kind}: xgrammar refuses it: {str(error).strip()}") from None
        return XGrammar(
            xgrammar.GrammarMatcher(compiled), self._stops, compiled.memory_size_bytes + len(text)
        )

    def _load(self) -> Any:
        import xgrammar

        vocabulary = self._vocabulary()
        self._stops = frozenset(vocabulary.stop_token_ids)
        info = xgrammar.TokenizerInfo(
            vocabulary.tokens,
            vocab_type=xgrammar.VocabType.RAW,
            vocab_size=len(vocabulary.tokens),
            stop_token_ids=list(vocabulary.stop_token_ids),
        )
        # our own cache is by constraint; threads end with each compilation
        return xgrammar.GrammarCompiler(info, max_threads=min(8, os.cpu_count() or 1), cache_enabled=False)


class XGrammar:
    """A compiled grammar, as a matcher at its beginning that is only ever copied."""

    def __init__(self, matcher: Any, stop_token_ids: frozenset[int], size: int) -> None:
        self.size = size
        self._matcher = matcher
        self._stop_token_ids = stop_token_ids

    def matcher(self) -> XGrammarMatcher:
        """A matcher at the beginning."""
        return XGrammarMatcher(self._matcher.fork(), self._stop_token_ids)


class XGrammarMatcher:
    """Where one request stands."""

    def __init__(self, matcher: Any, stop_token_ids: frozenset[int]) -> None:
        self._matcher = matcher
        self._stop_token_ids = stop_token_ids
        self._ended = False

    def fill(self, masks: np.ndarray, row: int) -> None:
        """Write the allowed tokens to a row of ``masks``."""
        self._matcher.fill_next_token_bitmask(masks, row)

    def accept(self, token_id: int) -> bool:
        """Take the next token; False if it is not allowed."""
        if self._ended or not self._matcher.accept_token(token_id):
            return False
        self._ended = token_id in self._stop_token_ids
        return True

    def rollback(self, count: int) -> None:
        """Take back the last ``count`` tokens."""
        if count:
            self._matcher.rollback(count)
            self._ended = False

    def forced_text(self) -> str:
        """What any output must go on with."""
        if self._ended:
            return ""
        try:
            return self._matcher.find_jump_forward_string()
        except UnicodeDecodeError:  # what is forced ends within a character
            return ""

    @property
    def is_terminated(self) -> bool:
        """True once a stop token was accepted."""
        return self._ended
