"""What a model keeps of every token, as shapes: planes, the layers that keep them, and pages of tokens."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..errors import ModelError
from .kv_kind import KVKind


class Plane(NamedTuple):
    """What a layer keeps of each token under one name; ``shape`` is per token."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of one token in one layer."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class KVGroup:
    """Layers that keep the same planes of each token and read them in the same way.

    Raises ModelError for planes that are not possible, or not those that the kind reads.

    Attributes:
        layers: their indices in the model.
        planes: what each of them keeps of a token.
        num_q_heads: heads of q in each of them, on this device.
        kind: who plans their reading; None is attention over pages of a plane "k" and a plane "v", both
            ``(Hkv, D)`` and of one dtype, which the engine's backend plans.
        window: positions back that they read, the token's own included; None: all.
    """

    layers: tuple[int, ...]
    planes: tuple[Plane, ...]
    num_q_heads: int
    kind: KVKind | None = None
    window: int | None = None

    def __post_init__(self) -> None:
        names = [plane.name for plane in self.planes]
        if not names or len(set(names)) < len(names):
            raise ModelError(f"{self} has planes {names}: at least one, each with a name of its own.")
        for plane in self.planes:
            if any(size < 1 for size in plane.shape):
                raise ModelError(
                    f"{self} has a plane {plane.name!r} {list(plane.shape)}: sizes are at least 1."
                )
        if self.kind is None:
            self._check_paged()

    @classmethod
    def paged(
        cls,
        layers: Iterable[int],
        *,
        num_q_heads: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        window: int | None = None,
    ) -> KVGroup:
        """Layers of attention over keys and values, ``head_dim`` of both alike."""
        planes = tuple(Plane(name, (num_kv_heads, head_dim), dtype) for name in ("k", "v"))
        return cls(tuple(layers), planes, num_q_heads, window=window)

    def plane(self, name: str) -> Plane:
        """The plane of that name. Raises KeyError if there is none."""
        return {plane.name: plane for plane in self.planes}[name]

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one token over its layers."""
        return len(self.layers) * sum(plane.nbytes for plane in self.planes)

    def _check_paged(self) -> None:
        shapes = {plane.name: (*plane.shape, plane.dtype) for plane in self.planes}
        fits = {*shapes} == {"k", "v"} and shapes["k"] == shapes["v"] and len(shapes["k"]) == 3
        if not fits or self.num_q_heads % self.plane("k").shape[0]:
            raise ModelError(
                f"{self} keeps {shapes} with {self.num_q_heads} q heads. Without a kind of its own it keeps"
                " 'k' and 'v', both (Hkv, D) of one dtype, with a multiple of Hkv as q heads."
            )

    def __str__(self) -> str:
        kind = "" if self.kind is None else f" of kind {self.kind.name!r}"
        return f"The KV group{kind} of layers {', '.join(map(str, self.layers))}"


@dataclass(frozen=True)
class KVCacheSpec:
    """What one model's KV cache holds: groups of layers, in pages of ``page_size`` tokens.

    All groups share one page table: page p of a sequence is page p in every plane of every layer. Raises
    ModelError unless each layer, from 0 on, is in one group.
    """

    groups: tuple[KVGroup, ...]
    page_size: int

    def __post_init__(self) -> None:
        layers = sorted(layer for group in self.groups for layer in group.layers)
        is_whole = layers == list(range(len(layers)))
        if not (layers and is_whole and all(group.layers for group in self.groups)):
            raise ModelError(
                f"The KV groups have the layers {[list(group.layers) for group in self.groups]}: each needs"
                " at least one, and every layer from 0 on belongs to one group."
            )

    @classmethod
    def uniform(
        cls,
        *,
        num_layers: int,
        num_q_heads: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        page_size: int,
    ) -> KVCacheSpec:
        """Layers of attention that are all alike: one group of keys and values."""
        group = KVGroup.paged(
            range(num_layers),
            num_q_heads=num_q_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            dtype=dtype,
        )
        return cls((group,), page_size)

    @property
    def num_layers(self) -> int:
        """Layers of all groups."""
        return sum(len(group.layers) for group in self.groups)

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one token over all layers."""
        return sum(group.bytes_per_token for group in self.groups)

    @property
    def bytes_per_page(self) -> int:
        """Bytes of one page over all layers."""
        return self.page_size * self.bytes_per_token

    @property
    def kinds(self) -> tuple[KVKind, ...]:
        """The kinds that the model brings."""
        return tuple(group.kind for group in self.groups if group.kind is not None)
