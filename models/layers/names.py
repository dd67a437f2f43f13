"""What checkpoints call their tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Names:
    """The pieces of a family's checkpoint names; each part is called by its own, with dots between.

    A family whose checkpoints say it otherwise states a table of its own and overrides nothing.
    """

    body: str = "model"  # in front of all but the head; bare models are saved without it
    embedding: str = "embed_tokens"
    layer: str = "layers.{}"
    final_norm: str = "norm"
    head: str = "lm_head"
    scores: str = "score"

    # in a layer
    attention: str = "self_attn"
    mlp: str = "mlp"
    input_norm: str = "input_layernorm"
    post_attention_norm: str = "post_attention_layernorm"
    pre_mlp_norm: str = "pre_feedforward_layernorm"
    post_mlp_norm: str = "post_feedforward_layernorm"

    # in attention and feed-forward
    q: str = "q_proj"
    k: str = "k_proj"
    v: str = "v_proj"
    output: str = "o_proj"
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"


USUAL_NAMES: Final = Names()


def dotted(prefix: str, name: str) -> str:
    """Both with a dot between; either may be empty."""
    return f"{prefix}.{name}" if prefix and name else prefix or name
