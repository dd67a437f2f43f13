"""What a backend is: it compiles rules to a grammar, which any number of requests match their tokens with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np

    from .budget import Budget
    from .constraint import Constraint


@dataclass(frozen=True)
class Vocabulary:
    """The tokens that constraints speak of.

    Attributes:
        tokens: the bytes of each token id; empty for those that are never text (special, padding).
        stop_token_ids: allowed where an output may end, and only there.
        encode: text to tokens of exactly its bytes, as the tokenizer cuts it; none if there is no such cut.
    """

    tokens: list[bytes]
    stop_token_ids: tuple[int, ...]
    encode: Callable[[str], list[int]]


class Matcher(Protocol):
    """Where one request stands in a grammar."""

    def fill(self, masks: np.ndarray, row: int) -> None:
        """Write the tokens allowed next to a row of ``masks`` [B, ceil(V / 32)] int32.

        Bit ``t % 32`` of word ``t // 32`` is that of token ``t``.
        """

    def accept(self, token_id: int) -> bool:
        """Take the next token. False, with nothing changed, if it is not allowed here."""

    def rollback(self, count: int) -> None:
        """Take back the last ``count`` accepted tokens."""

    def forced_text(self) -> str:
        """What any output must go on with here, whole characters only; possibly nothing."""

    @property
    def is_terminated(self) -> bool:
        """True once a stop token was accepted: nothing may follow."""

    def follows(self, text: bytes) -> bool:
        """Whether a text may stand next, whatever its tokens."""

    def fork(self) -> Matcher:
        """Another one that stands here; what came before cannot be taken back there."""


@dataclass(frozen=True)
class Grammar:
    """A compiled constraint, as a matcher at its beginning that is only ever copied; any thread may.

    Attributes:
        size: about the bytes that it takes.
    """

    begin: Matcher
    size: int

    def matcher(self) -> Matcher:
        """A matcher at the beginning."""
        return self.begin.fork()


class Backend(Protocol):
    """Compiles constraints for one vocabulary; any thread may call."""

    def compile(self, constraint: Constraint, budget: Budget) -> Grammar:
        """Raises GrammarError for what is invalid, not supported or out of budget."""
