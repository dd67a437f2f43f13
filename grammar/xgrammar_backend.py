"""Constraints by xgrammar: masks kept per place of the grammar, made once when it is compiled."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import GrammarError
from .budget import Budget
from .constraint import Constraint
from .distinct_items import DistinctItems, ItemTokens, has_distinct_items
from .interface import Grammar, Matcher, Vocabulary
from .notation import as_ebnf
from .string_counts import Length, StringCounts, TokenCounts
from .watched import WatchedMatcher

if TYPE_CHECKING:
    import numpy as np


# Tokens times places: what it does to compile, some 0.3 microseconds each, and it cannot be interrupted.
_MAX_TRIALS = 60_000_000


class XGrammarBackend:
    """Compiles rules with xgrammar, which is loaded at the first use; ``vocabulary`` is called then."""

    def __init__(self, vocabulary: Callable[[], Vocabulary]) -> None:
        self._vocabulary = vocabulary
        self._lock = threading.Lock()
        self._compiler: Any = None
        self._stops: frozenset[int] = frozenset()
        self._tokens: list[bytes] = []

    def compile(self, constraint: Constraint, budget: Budget | None = None) -> Grammar:
        """Raises GrammarError for what is invalid, not supported or out of budget."""
        import xgrammar

        budget = budget or Budget()
        lengths: dict[str, Length] | None = {} if constraint.kind == "json_schema" else None
        rules = constraint.rules(budget)
        text = as_ebnf(rules, budget, lengths)
        with self._lock:
            if self._compiler is None:
                self._compiler = self._load()
        if budget.breadth * len(self._tokens) > _MAX_TRIALS:
            raise GrammarError(
                f"{constraint.kind} is too large: it has {budget.breadth:.0f} places where any character may"
                f" stand, and {_MAX_TRIALS // len(self._tokens)} are supported. Repeat less."
            )
        try:
            compiled = self._compiler.compile_grammar(text)
        except RuntimeError as error:  # a size it cannot take: the rules themselves are in order
            raise GrammarError(f"{constraint.kind}: xgrammar refuses it: {str(error).strip()}") from None
        matcher: Matcher = XGrammarMatcher(xgrammar.GrammarMatcher(compiled), self._stops)
        if lengths:
            matcher = WatchedMatcher(matcher, StringCounts(self._token_counts, lengths))
        if has_distinct_items(rules):
            matcher = WatchedMatcher(matcher, DistinctItems(self._item_tokens))
        # what it says of itself is about half of what its process then has more
        return Grammar(matcher, 2 * (compiled.memory_size_bytes + len(text)))

    @functools.cached_property
    def _item_tokens(self) -> ItemTokens:
        return ItemTokens(self._tokens)

    @functools.cached_property
    def _token_counts(self) -> TokenCounts:
        return TokenCounts(self._tokens)

    def _load(self) -> Any:
        import xgrammar

        vocabulary = self._vocabulary()
        self._stops = frozenset(vocabulary.stop_token_ids)
        self._tokens = vocabulary.tokens
        info = xgrammar.TokenizerInfo(
            vocabulary.tokens,
            vocab_type=xgrammar.VocabType.RAW,
            vocab_size=len(vocabulary.tokens),
            stop_token_ids=list(vocabulary.stop_token_ids),
        )
        # our own cache is by constraint; threads end with each compilation
        return xgrammar.GrammarCompiler(info, max_threads=min(8, os.cpu_count() or 1), cache_enabled=False)


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

    def follows(self, text: bytes) -> bool:
        """Whether a text may stand next."""
        return self._matcher.fork().accept_string(text)

    def fork(self) -> XGrammarMatcher:
        """Another one that stands here."""
        return XGrammarMatcher(self._matcher.fork(), self._stop_token_ids)
