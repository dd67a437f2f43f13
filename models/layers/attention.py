"""Grouped-query self-attention over the paged KV cache."""

from __future__ import annotations

import torch
from torch import Tensor

from ...kernels.attention import Scoring
from ...kernels.rotary import rotary_and_store
from ..config import ModelConfig
from ..forward import ForwardInput
from .linear import Linear
from .norm import Normed
from .rotary import RotaryTable
from .storage import NamedSlots


class Attention:
    """One layer's attention: merged q/k/v projection, rotation, attention, output projection.

    ``window`` is how many positions back a token sees, itself included; None is all. ``scale``
    multiplies the scores, ``1 / sqrt(head_dim)`` unless given; ``soft_cap`` bounds them.
    """

    __slots__ = ("num_heads", "output", "qkv", "rotary", "scoring")

    def __init__(
        self,
        config: ModelConfig,
        rotary: RotaryTable,
        *,
        qkv_bias: bool = False,
        output_bias: bool = False,
        window: int | None = None,
        scale: float | None = None,
        soft_cap: float | None = None,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        q_size = config.num_heads * config.head_dim
        kv_size = config.num_kv_heads * config.head_dim
        shards = {"q_proj": q_size, "k_proj": kv_size, "v_proj": kv_size}
        self.qkv = Linear(config.hidden_size, shards, bias=qkv_bias, dtype=dtype, device=device)
        self.output = Linear(
            q_size, {"o_proj": config.hidden_size}, bias=output_bias, dtype=dtype, device=device
        )
        self.rotary = rotary
        self.num_heads = config.num_heads
        self.scoring = Scoring(config.head_dim**-0.5 if scale is None else scale, window, soft_cap)

    def weights(self) -> NamedSlots:
        """Checkpoint names, relative to this part."""
        yield from self.qkv.weights()
        yield from self.output.weights()

    def project(self, x: Tensor | Normed) -> Tensor:
        """q | k | v before rotation, ``[T, (Hq + 2 Hkv) * D]``: where a family may normalise them."""
        return self.qkv.forward(x)

    def forward(
        self, x: Tensor | Normed, residual: Tensor, inp: ForwardInput, k_cache: Tensor, v_cache: Tensor
    ) -> Tensor | None:
        """Attend x ``[T, H]``; its K and V go to the caches ``[pages, page_size, Hkv, D]``.

        Adds the result to ``residual`` and returns None, or returns it to be added: ``[T, H]``, or ``[S, H]``
        where only S tokens are wanted.
        """
        q = rotary_and_store(
            self.project(x),
            self.rotary.cos_sin,
            inp.positions,
            inp.kv_slots,
            k_cache,
            v_cache,
            self.num_heads,
        )
        plan = inp.attention
        if inp.wanted is not None:
            q, plan = q.index_select(0, inp.wanted.tokens), inp.wanted.attention
        attended = plan.attend(q, k_cache, v_cache, self.scoring)
        return self.output.forward_add(attended.flatten(1), residual)
