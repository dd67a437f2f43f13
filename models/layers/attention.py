"""Grouped-query self-attention over the paged KV cache."""

from __future__ import annotations

from torch import Tensor

from ...cache.kv_cache import LayerKV
from ...kernels.attention import check_device
from ...kernels.rotary import rotary_and_store
from ...kernels.scoring import Scoring
from ..forward import ForwardInput
from .make import Heads, Make
from .part import Part
from .residual import Promise, Residual
from .rotary import RotaryTable
from .slots import NamedSlots


class Attention(Part):
    """One layer's attention: merged q/k/v projection, rotation, attention, output projection.

    ``window`` is how many positions back a token sees, itself included; None is all. ``scale`` multiplies
    the scores, ``1 / sqrt(heads.dim)`` unless given; ``soft_cap`` bounds them. Raises ModelError for what no
    kernel of the device knows.
    """

    __slots__ = ("num_heads", "output", "qkv", "rotary", "scoring")

    def __init__(
        self,
        make: Make,
        rotary: RotaryTable,
        heads: Heads,
        *,
        qkv_bias: bool = False,
        output_bias: bool = False,
        window: int | None = None,
        scale: float | None = None,
        soft_cap: float | None = None,
    ) -> None:
        names, hidden = make.names, make.config.hidden_size
        q_size, kv_size = heads.q * heads.dim, heads.kv * heads.dim
        rows = {names.q: q_size, names.k: kv_size, names.v: kv_size}
        self.qkv = make.linear(hidden, rows, bias=qkv_bias, split="out")
        self.output = make.linear(q_size, {names.output: hidden}, bias=output_bias, split="in")
        self.rotary = rotary
        self.num_heads = heads.q // make.ranks.size
        self.scoring = Scoring(heads.dim**-0.5 if scale is None else scale, window, soft_cap)
        check_device(self.scoring, make.device)

    def weights(self) -> NamedSlots:
        """Checkpoint names, relative to this part."""
        yield from self.qkv.weights()
        yield from self.output.weights()

    def forward(self, x: Tensor | Promise, inp: ForwardInput, kv: LayerKV) -> Tensor:
        """The branch ``[T, H]`` for x ``[T, H]``, ``[S, H]`` if S tokens are wanted; K and V go to ``kv``."""
        return self.output.forward(self.attend(x, inp, kv), inp)

    def forward_into(self, x: Tensor | Promise, inp: ForwardInput, stream: Residual, kv: LayerKV) -> None:
        """Add the branch for x ``[T, H]`` to ``stream``, of the wanted tokens; K and V go to ``kv``."""
        self.output.forward_into(self.attend(x, inp, kv), inp, stream)

    def project(self, x: Tensor | Promise, inp: ForwardInput) -> Tensor:
        """q | k | v before rotation, ``[T, (Hq + 2 Hkv) * D]``: where a family may normalise them."""
        return self.qkv.forward(x, inp)

    def attend(self, x: Tensor | Promise, inp: ForwardInput, kv: LayerKV) -> Tensor:
        """What the heads see, ``[T, Hq * D]`` or ``[S, Hq * D]``, before it is projected."""
        q = rotary_and_store(
            self.project(x, inp),
            self.rotary.cos_sin,
            inp.positions,
            inp.groups[kv.group].kv_slots,
            kv.k,
            kv.v,
            self.num_heads,
        )
        return inp.attend(q, kv, self.scoring).flatten(1)
