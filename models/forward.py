"""What a model's forward pass takes: the tokens of one step, where they stand and where their K/V go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from ..kernels.attention import AttentionPlan


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
