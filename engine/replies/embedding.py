"""What ``encode`` and ``classify`` return: one vector per text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..schedule.request import Request
from .outputs import DocumentedOutput, shared_fields


@dataclass(frozen=True, kw_only=True)
class EmbeddingOutput(DocumentedOutput):
    """What one text means to the model.

    Reads like the documented dictionary too: ``out["embedding"]``, ``out["meta_info"]["prompt_tokens"]`` and,
    in a batch, ``out["index"]``. Outputs are compared without ``timing``.

    Attributes:
        rid, finish_reason, prompt_tokens, cached_tokens, index, weights_version, timing: as in
            :class:`~rootlet.engine.replies.outputs.DocumentedOutput`.
        embedding: fp32 values: of an embedding model the normalised state of the last token ``[H]``, of a
            classifier the score of each label (logits), of a reward model the reward alone. None if aborted.
    """

    embedding: list[float] | None

    @property
    def _content_key(self) -> str:
        return "embedding"

    def __getitem__(self, key: str) -> object:
        if key in ("embedding", "meta_info") or (key == "index" and self.index is not None):
            return getattr(self, key)
        raise KeyError(key)


def build_embedding(
    request: Request,
    text: str | None,  # noqa: ARG001
    *,
    token_text: Callable[[int], str] | None,  # noqa: ARG001
    index: int | None,
) -> EmbeddingOutput:
    """The output of ``request`` of an engine that embeds; takes what ``outputs.build_output`` takes."""
    return EmbeddingOutput(
        **shared_fields(request, index, 0, ended=True), embedding=request.collected.embedding
    )
