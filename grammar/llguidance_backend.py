"""Constraints by llguidance: masks computed when they are needed, with nothing to prepare."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ..errors import GrammarError, MissingDependencyError
from .budget import Budget
from .constraint import Constraint
from .distinct_items import DistinctItems, ItemTokens, has_distinct_items
from .interface import Grammar, Vocabulary
from .notation import as_lark
from .tree import Lexeme, Node, Rule, Rules, parts
from .watched import WatchedMatcher

if TYPE_CHECKING:
    import numpy as np

# Parser items that one mask may take, about 50 ms: a few for each token of the vocabulary where text is free.
_MAX_ITEMS = 500_000
_MAX_ROW = 20_000  # of them behind one token: as many as an object has properties that may follow
# a vocabulary of single bytes, and one that ends
_BYTES = Vocabulary([*(bytes([byte]) for byte in range(256)), b""], (256,), lambda text: [*text.encode()])
_MAX_DEPTH = 1500  # levels; 3,600 were well in a thread with 8 MiB of stack
_BYTES_PER_CHAR, _BYTES_EACH = 40, 100_000  # of a grammar, measured


class LlguidanceBackend:
    """Compiles rules with llguidance; ``vocabulary`` is called at the first use.

    Raises MissingDependencyError if the package is not installed.
    """

    def __init__(self, vocabulary: Callable[[], Vocabulary]) -> None:
        try:
            import llguidance
        except ImportError as error:
            raise MissingDependencyError(
                "grammar_backend='llguidance' needs that package: pip install 'llguidance>=1.7'."
            ) from error
        self._library = llguidance
        self._make_vocabulary = vocabulary
        self._lock = threading.Lock()
        self._tokenizer: Any = None
        self._bytes: Any = None
        self._tokens: list[bytes] = []
        self._stops: frozenset[int] = frozenset()

    def compile(self, constraint: Constraint, budget: Budget | None = None) -> Grammar:
        """Raises GrammarError for what is invalid, not supported or out of budget."""
        budget = budget or Budget()
        rules = constraint.rules(budget)
        _check_depth(rules, budget)
        # behind a number of a document stands what cannot belong to it, behind one in a tag may stand a digit
        text = as_lark(rules, budget, open_words=constraint.kind == "json_schema")
        with self._lock:
            if self._tokenizer is None:
                self._load()
        found = self._matcher(self._tokenizer, text)
        if found.is_error():
            raise GrammarError(f"{constraint.kind}: llguidance refuses it: {found.get_error().strip()}")
        size = _BYTES_PER_CHAR * len(text) + _BYTES_EACH
        if not has_distinct_items(rules):
            return Grammar(LlguidanceMatcher(found, self._stops), size)
        letters = _Letters(self._matcher(self._bytes, text), self._tokens)
        matcher = LlguidanceMatcher(found, self._stops, letters)
        return Grammar(WatchedMatcher(matcher, DistinctItems(self._item_tokens)), 2 * size)

    def _matcher(self, tokenizer: Any, text: str) -> Any:
        return self._library.LLMatcher(
            tokenizer,
            self._library.LLMatcher.grammar_from_lark(text),
            log_level=0,
            limits=self._library.LLParserLimits(step_max_items=_MAX_ITEMS, max_items_in_row=_MAX_ROW),
        )

    @functools.cached_property
    def _item_tokens(self) -> ItemTokens:
        return ItemTokens(self._tokens)

    def _load(self) -> None:
        vocabulary = self._make_vocabulary()
        self._stops = frozenset(vocabulary.stop_token_ids)
        self._tokens = vocabulary.tokens
        self._bytes = self._tokenizer_of(_BYTES)
        self._tokenizer = self._tokenizer_of(vocabulary)

    def _tokenizer_of(self, vocabulary: Vocabulary) -> Any:
        wrapper = self._library.TokenizerWrapper(_Tokenizer(vocabulary))
        stops = list(vocabulary.stop_token_ids)
        return self._library.LLTokenizer(wrapper, n_vocab=len(vocabulary.tokens), eos_token=stops)


def _check_depth(rules: Rules, budget: Budget) -> None:
    """Raise GrammarError for rules that lead on and on to others: the library follows them by recursion.

    What it does when the stack of its thread is used up cannot be caught.
    """
    seen: set[str] = set()
    path: list[Iterator[Node]] = [iter([Rule("root")])]
    while path:
        node = next(path[-1], None)
        budget.spend(1, "the number of rules")
        if node is None:
            path.pop()
        elif isinstance(node, Rule):
            if node.name not in seen:
                seen.add(node.name)
                path.append(iter([rules[node.name]]))
        elif not isinstance(node, Lexeme):
            path.append(parts(node))
        if len(path) > _MAX_DEPTH:
            raise GrammarError(
                f"The constraint is nested more than {_MAX_DEPTH} levels deep, counting rules and groups,"
                " more than llguidance survives: nest less, or use grammar_backend='xgrammar'."
            )


class _Tokenizer:
    """Our vocabulary as the library asks for one."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.tokens = vocabulary.tokens
        self.eos_token_id = vocabulary.stop_token_ids[0]
        self.bos_token_id = None
        self.special_token_ids = [i for i, token in enumerate(vocabulary.tokens) if not token]
        self._encode = vocabulary.encode

    def __call__(self, text: bytes | str) -> list[int]:
        return self._encode(text.decode() if isinstance(text, bytes) else text)


class _Letters:
    """A matcher of the same grammar to which each byte is a token: it can tell what texts may follow."""

    def __init__(self, matcher: Any, tokens: list[bytes]) -> None:
        self._matcher = matcher
        self._tokens = tokens
        self._lengths: list[int] = []  # of accepted tokens

    def accept(self, token_id: int) -> None:
        """Take a token that is allowed."""
        self._lengths.append(self._matcher.try_consume_tokens([*self._tokens[token_id]]))

    def rollback(self, count: int) -> None:
        """Take back the last ``count`` tokens, at least one."""
        self._matcher.rollback(sum(self._lengths[-count:]))
        del self._lengths[-count:]

    def follows(self, text: bytes) -> bool:
        """Whether a text may stand next."""
        return self._matcher.validate_tokens([*text]) == len(text)

    def fork(self) -> _Letters:
        """Another one that stands here."""
        return _Letters(self._matcher.deep_copy(), self._tokens)


class LlguidanceMatcher:
    """Where one request stands; with ``letters`` it can tell what texts may follow."""

    def __init__(self, matcher: Any, stop_token_ids: frozenset[int], letters: _Letters | None = None) -> None:
        self._matcher = matcher
        self._stop_token_ids = stop_token_ids
        self._letters = letters
        self._ended = False

    def fill(self, masks: np.ndarray, row: int) -> None:
        """Write the allowed tokens to a row of ``masks``."""
        target = masks[row]
        self._matcher.unsafe_compute_mask_ptr(target.ctypes.data, target.nbytes)
        if self._matcher.is_error():
            raise GrammarError(f"llguidance gave up: {self._matcher.get_error().strip()}")

    def accept(self, token_id: int) -> bool:
        """Take the next token; False if it is not allowed."""
        if self._ended:
            return False
        if token_id in self._stop_token_ids:
            self._ended = self._matcher.is_accepting()
            return self._ended
        if self._matcher.try_consume_tokens([token_id]) != 1:
            return False
        if self._letters is not None:
            self._letters.accept(token_id)
        return True

    def rollback(self, count: int) -> None:
        """Take back the last ``count`` tokens."""
        if count and self._ended:
            self._ended, count = False, count - 1
        if count:
            self._matcher.rollback(count)
            if self._letters is not None:
                self._letters.rollback(count)

    def forced_text(self) -> str:
        """What any output must go on with."""
        if self._ended:
            return ""
        return self._matcher.compute_ff_bytes().decode(errors="ignore")

    @property
    def is_terminated(self) -> bool:
        """True once a stop token was accepted."""
        return self._ended

    def follows(self, text: bytes) -> bool:
        """Whether a text may stand next."""
        assert self._letters is not None, "made without what tells texts"
        return self._letters.follows(text)

    def fork(self) -> LlguidanceMatcher:
        """Another one that stands here."""
        letters = None if self._letters is None else self._letters.fork()
        return LlguidanceMatcher(self._matcher.deep_copy(), self._stop_token_ids, letters)
