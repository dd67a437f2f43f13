"""The forward pass of a described decoder over the parameters of a module, operation by operation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention import AttentionStep, attend
from .decoder import Decoder, Layer, LinearNames, NormNames
from .norms import added_and_normed, normed
from .products import Weights, gated_product, product, product_into
from .sequences import Sequences


class _Shared(NamedTuple):
    """What all layers of a pass take; ``norms``: their weights by name, in the dtype of the engine."""

    step: AttentionStep
    norms: Mapping[str, Tensor]


@dataclass(frozen=True)
class Pass:
    """One pass of ``decoder`` with the parameters that ``module`` has now.

    ``computing()`` is entered around what kernels do, on whichever thread does it. ``recomputes``: of each
    layer only the input is kept for the backward pass, which computes the rest anew, to the same bits.
    """

    decoder: Decoder
    module: nn.Module
    computing: Callable[[], AbstractContextManager[Any]]
    recomputes: bool = False

    def hidden_states(self, sequences: Sequences) -> Tensor:
        """States ``[T, H]`` after the last norm."""
        decoder = self.decoder
        plan = sequences.plan(*decoder.heads, decoder.dtype)
        step = AttentionStep(sequences, plan, decoder.rotary.cos_sin, decoder.heads)
        # The weights of norms first: a kernel may read them while the one launched right before still runs.
        norms = [decoder.norm]
        norms += [norm for layer in decoder.layers for norm in (layer.input_norm, layer.post_attention_norm)]
        weights = {norm.weight: self.parameter(norm.weight).to(decoder.dtype) for norm in norms}
        shared = _Shared(step, weights)
        stream = F.embedding(sequences.ids, self.parameter(decoder.embedding)).to(decoder.dtype)
        branch: Tensor | None = None
        for layer in decoder.layers:
            if self.recomputes:
                stream, branch = checkpoint(
                    self._layer, layer, shared, stream, branch, use_reentrant=False, preserve_rng_state=False
                )
            else:
                stream, branch = self._layer(layer, shared, stream, branch)
        with self.computing():
            return _normed(stream, branch, decoder.norm, weights)[1]

    def head(self) -> Weights:
        """The parameters of the head."""
        return self._weights(self.decoder.head)

    def parameter(self, name: str) -> Tensor:
        """The parameter of that name; looked up in each pass, for hosts replace them."""
        return self.module.get_parameter(name)

    def _layer(
        self, layer: Layer, shared: _Shared, stream: Tensor, branch: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The stream ``[T, H]`` after a layer, and what is still to be added to it."""
        with self.computing():
            stream, x = _normed(stream, branch, layer.input_norm, shared.norms)
            x = attend(product(x, self._weights(layer.qkv)), shared.step, layer.scoring)
            stream, branch = product_into(x, self._weights(layer.output), stream)
            stream, x = _normed(stream, branch, layer.post_attention_norm, shared.norms)
            x = gated_product(x, self._weights(layer.gate_up), layer.activation)
            return product_into(x, self._weights(layer.down), stream)

    def _weights(self, names: LinearNames) -> Weights:
        return Weights(tuple(map(self.parameter, names.weights)), tuple(map(self.parameter, names.biases)))


def _normed(
    stream: Tensor, branch: Tensor | None, norm: NormNames, weights: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """The stream with ``branch`` added, and the norm of it."""
    weight = weights[norm.weight]
    if branch is None:
        return stream, normed(stream, weight, norm.eps, norm.offset)
    return added_and_normed(branch, stream, weight, norm.eps, norm.offset)
