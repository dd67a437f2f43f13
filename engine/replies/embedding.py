"""What ``encode`` and ``classify`` return: one vector per text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from ..schedule.request import Request
from ..schedule.timing import RequestTiming
from .outputs import DocumentedOutput


@dataclass(frozen=True)
class EmbeddingOutput(DocumentedOutput):
    """What one text means to the model.

    Reads like the documented dictionary too: ``out["embedding"]``, ``out["meta_info"]["prompt_tokens"]`` and,
    in a batch, ``out["index"]``. Outputs are compared without ``timing``.

    Attributes:
        rid: id of the request.
        embedding: fp32 values: of an embedding model the normalised state of the last token ``[H]``, of a
            classifier the score of each label (logits), of a reward model the reward alone. None if aborted.
        finish_reason: as in :class:`~rootlet.RequestOutput`.
        prompt_tokens, cached_tokens: tokens of the text, and how many came from the prefix cache.
        index: position in a batch, None for a single text.
        weights_version: how often the weights had been updated.
        timing: where the time went; see :class:`~rootlet.engine.schedule.timing.RequestTiming`.
    """

    rid: str
    embedding: list[float] | None
    finish_reason: dict[str, object] | None
    prompt_tokens: int
    cached_tokens: int
    index: int | None = None
    weights_version: int = 0
    timing: RequestTiming | None = field(default=None, compare=False)

    @cached_property
    def meta_info(self) -> dict[str, object]:
        """The documented ``meta_info`` dictionary."""
        meta: dict[str, object] = {
            "id": self.rid,
            "finish_reason": self.finish_reason,
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "weights_version": self.weights_version,
        }
        return meta if self.timing is None else meta | {"timing": self.timing.as_dict()}

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
    weights_version: int,
) -> EmbeddingOutput:
    """Snapshot ``request`` of an engine that embeds; takes what ``outputs.build_output`` takes."""
    return EmbeddingOutput(
        rid=request.rid,
        embedding=request.collected.embedding,
        finish_reason=request.finish_reason.as_dict() if request.finish_reason else None,
        prompt_tokens=request.num_prompt_tokens,
        cached_tokens=request.num_cached_tokens,
        index=index,
        weights_version=weights_version,
        timing=request.stamps.timing() if request.is_finished else None,
    )
