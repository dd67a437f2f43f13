"""What a forward pass takes: the tokens of one step, where they stand, what is kept of them and where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from ..cache.kv_cache import LayerKV
from ..kernels.attention import AttentionPlan
from ..kernels.scoring import Scoring


class TokenEmbeds(NamedTuple):
    """Vectors that stand for tokens: ``values`` [E, H] at the places ``places`` [E] int64 of a step."""

    places: torch.Tensor
    values: torch.Tensor


class GroupStep(NamedTuple):
    """One step for the layers of one KV group.

    ``kv_slots`` [T] int64, ``page * page_size + offset``: where what is kept of each token is written.
    ``attention``: what the group's planner made for all T tokens, an :class:`AttentionPlan` in groups
    without a kind of their own.
    """

    kv_slots: torch.Tensor
    attention: Any


class WantedTokens(NamedTuple):
    """The tokens of a step whose states somebody reads: the last layer computes no others.

    ``tokens`` [S] int64 or int32, ascending indices into the step's T; ``attention``, per KV group, is
    planned for these alone, each a row of one token.
    """

    tokens: torch.Tensor
    attention: Sequence[Any]


@dataclass(frozen=True)
class ForwardInput:
    """The T tokens of one step, all rows one after the other."""

    input_ids: torch.Tensor  # [T] int64
    positions: torch.Tensor  # [T] int64 (int32 too on a GPU), index of each token within its sequence
    groups: Sequence[GroupStep]  # per KV group; a layer's is groups[kv.group]
    embeds: TokenEmbeds | None = None  # instead of the embeddings of those tokens
    wanted: WantedTokens | None = None  # None: all
    columns: Mapping[str, torch.Tensor] = field(default_factory=dict)  # [T] int32 each, of features, by name

    def replaced(self, values: torch.Tensor) -> torch.Tensor:
        """``values`` ``[T, H]``, looked up by token, with ``embeds`` in their places; changed in place."""
        return values if self.embeds is None else values.index_copy_(0, *self.embeds)

    def keep(self, x: torch.Tensor) -> torch.Tensor:
        """Rows of the wanted tokens ``[S, ...]`` of x ``[T, ...]``; x itself if all are wanted."""
        return x if self.wanted is None else x.index_select(0, self.wanted.tokens)

    def plan(self, kv: LayerKV) -> Any:
        """What the planner of the layer's group made, for the wanted tokens alone if not all are."""
        if self.wanted is None:
            return self.groups[kv.group].attention
        return self.wanted.attention[kv.group]

    def attend(self, q: torch.Tensor, kv: LayerKV, scoring: Scoring) -> torch.Tensor:
        """One layer's attention of q ``[T, Hq, D]``: ``[T, Hq, D]``, or ``[S, Hq, D]`` if S are wanted."""
        plan: AttentionPlan = self.plan(kv)
        return plan.attend(self.keep(q), kv.k, kv.v, scoring)
