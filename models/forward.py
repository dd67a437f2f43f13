"""What a model's forward pass takes: the tokens of one step, where they stand and where their K/V go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from ..cache.kv_cache import LayerKV
from ..kernels.attention import AttentionPlan
from ..kernels.scoring import Scoring


class TokenEmbeds(NamedTuple):
    """Vectors that stand for tokens: ``values`` [E, H] at the places ``places`` [E] int64 of a step."""

    places: torch.Tensor
    values: torch.Tensor


class WantedTokens(NamedTuple):
    """The tokens of a step whose states somebody reads: the last layer computes no others.

    ``tokens`` [S] int64 or int32, ascending indices into the step's T; ``attention`` is planned for these
    alone, each a row of one token.
    """

    tokens: torch.Tensor
    attention: AttentionPlan


@dataclass(frozen=True)
class ForwardInput:
    """The T tokens of one step, all rows one after the other."""

    input_ids: torch.Tensor  # [T] int64
    positions: torch.Tensor  # [T] int64 (int32 too on a GPU), index of each token within its sequence
    kv_slots: torch.Tensor  # [T] int64, page * page_size + offset: where K and V of the token are written
    attention: AttentionPlan
    embeds: TokenEmbeds | None = None  # instead of the embeddings of those tokens
    wanted: WantedTokens | None = None  # None: all
    columns: Mapping[str, torch.Tensor] = field(default_factory=dict)  # [T] int32 each, of features, by name

    def replaced(self, values: torch.Tensor) -> torch.Tensor:
        """``values`` ``[T, H]``, looked up by token, with ``embeds`` in their places; changed in place."""
        return values if self.embeds is None else values.index_copy_(0, *self.embeds)

    def keep(self, x: torch.Tensor) -> torch.Tensor:
        """Rows of the wanted tokens ``[S, ...]`` of x ``[T, ...]``; x itself if all are wanted."""
        return x if self.wanted is None else x.index_select(0, self.wanted.tokens)

    def attend(self, q: torch.Tensor, kv: LayerKV, scoring: Scoring) -> torch.Tensor:
        """One layer's attention of q ``[T, Hq, D]``: ``[T, Hq, D]``, or ``[S, Hq, D]`` if S are wanted."""
        if self.wanted is None:
            return self.attention.attend(q, kv.k, kv.v, scoring)
        return self.wanted.attention.attend(self.keep(q), kv.k, kv.v, scoring)
