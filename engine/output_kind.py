"""What an engine computes of a request's last state: the next token, an embedding, or scores of labels."""

from __future__ import annotations

import enum

from ..errors import InvalidRequestError


class OutputKind(enum.Enum):
    """What requests of an engine come to; one kind per engine."""

    TEXT = "text"  # tokens are drawn: generate, chat, score
    EMBEDDING = "embedding"  # encode
    SCORES = "scores"  # an embedding with a number per label: classify, and encode

    @property
    def is_text(self) -> bool:
        """Tokens are drawn."""
        return self is OutputKind.TEXT

    def check(self, wanted: OutputKind) -> None:
        """Raise InvalidRequestError if an engine of this kind cannot answer a call for ``wanted``."""
        if wanted is OutputKind.SCORES and self is not OutputKind.SCORES:
            raise InvalidRequestError(
                "classify() needs a model with labels (*ForSequenceClassification), and this one has none:"
                " use encode() for embeddings, generate() or score() for a language model."
            )
        if wanted is OutputKind.EMBEDDING and self is OutputKind.TEXT:
            raise InvalidRequestError(
                "This engine generates text. For embeddings build it with is_embedding=True, or load an"
                " embedding or reward model."
            )
        if wanted is OutputKind.TEXT and self is not OutputKind.TEXT:
            raise InvalidRequestError(
                "This engine computes embeddings (encode) or scores (classify); it generates no text. Load a"
                " model with a language head, without is_embedding=True."
            )
