"""How the parts of one model are made: what all of them share, and the name of the one at hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal, NamedTuple

import torch

from ..config import ModelConfig
from .embedding import Embedding, TiedEmbedding
from .head import Head
from .linear import Linear
from .matrices import DENSE, MatrixStorage, Scheme, Split
from .names import USUAL_NAMES, Names, dotted
from .norm import LayerNorm, RMSNorm
from .slots import Ranks
from .storage import TensorStore


class Heads(NamedTuple):
    """Attention's sizes: q heads, k/v heads, dimensions of one."""

    q: int
    kv: int
    dim: int


ONE_RANK: Final = Ranks()


@dataclass(frozen=True)
class Make:
    """Makes a model's parts. ``prefix`` is the checkpoint's name of the part that is being made.

    ``matrices`` are those of all parts made so far: what all of them are told goes there.
    """

    config: ModelConfig
    dtype: torch.dtype
    device: torch.device
    names: Names = USUAL_NAMES
    scheme: Scheme = DENSE
    ranks: Ranks = ONE_RANK
    prefix: str = ""
    matrices: list[MatrixStorage] = field(default_factory=list, repr=False, compare=False)

    def at(self, name: str) -> Make:
        """For the part of that name within this one."""
        return replace(self, prefix=dotted(self.prefix, name))

    @property
    def heads(self) -> Heads:
        """Attention's sizes by the configuration, the same in every layer."""
        return Heads(self.config.num_heads, self.config.num_kv_heads, self.config.head_dim)

    def linear(
        self,
        in_features: int,
        rows: Mapping[str, int],
        *,
        bias: bool = False,
        split: Literal["in", "out"] | None = None,
    ) -> Linear:
        """A product of x ``[T, in_features]`` with so many ``rows`` of each name, merged into one matrix.

        Sizes are those of the whole model; ``split`` says which of them ranks divide among themselves. A
        product split along ``in`` follows one split along ``out``: each rank's is a part of the sum. None:
        every rank has all.
        """
        size = self.ranks.size
        if split == "in":
            in_features //= size
        elif split == "out":
            rows = {name: count // size for name, count in rows.items()}
        named = {dotted(self.prefix, name): count for name, count in rows.items()}
        segments = list(self.scheme.matrices(named, in_features, self.dtype, self.device))
        self.matrices.extend(segments)
        own_bias = TensorStore((sum(rows.values()),), self.dtype, self.device) if bias else None
        return Linear(
            rows, segments, own_bias, None if split is None or size == 1 else Split(split, self.ranks)
        )

    def rms_norm(self, size: int | None = None, *, eps: float | None = None, offset: float = 0.0) -> RMSNorm:
        """A norm of ``size`` columns, by default H, with the configuration's ``rms_norm_eps``."""
        if eps is None:
            eps = self.config.read("rms_norm_eps", float, 1e-6, minimum=0)
        return RMSNorm(size or self.config.hidden_size, eps, self.dtype, self.device, offset=offset)

    def layer_norm(
        self, size: int | None = None, *, eps: float | None = None, bias: bool = True
    ) -> LayerNorm:
        """A norm with mean of ``size`` columns, by default H, with the configuration's ``layer_norm_eps``."""
        if eps is None:
            eps = self.config.read(("layer_norm_eps", "layer_norm_epsilon"), float, 1e-5, minimum=0)
        return LayerNorm(size or self.config.hidden_size, eps, self.dtype, self.device, bias=bias)

    def embedding(self, tied: Head | None = None) -> Embedding | TiedEmbedding:
        """The embedding of tokens: a table, or the rows of a head."""
        if tied is not None:
            return TiedEmbedding(tied.linear)
        return Embedding(self.config.vocab_size, self.config.hidden_size, self.dtype, self.device)

    def head(
        self,
        rows: Mapping[str, int],
        *,
        bias: bool = False,
        scale: float = 1.0,
        soft_cap: float | None = None,
    ) -> Head:
        """What turns states into logits or scores: a product, its name and number of rows in ``rows``."""
        linear = self.linear(self.config.hidden_size, rows, bias=bias)
        return Head(linear, scale=scale, soft_cap=soft_cap)
