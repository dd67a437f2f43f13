"""GGUF metadata as the ``config.json`` and ``generation_config.json`` the rest of Rootlet reads.

Key names: GGUF specification (ggml project, ``docs/gguf.md``) and llama.cpp's ``gguf-py/gguf/constants.py``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import overload

from ...errors import ModelError
from ..fields import shorten
from .gguf_file import GGUFFile

# GGUF architecture -> Hugging Face architecture. Mistral files carry the architecture "llama".
_ARCHITECTURES = {"llama": ("LlamaForCausalLM", "llama"), "qwen2": ("Qwen2ForCausalLM", "qwen2")}

# Keys (after "<architecture>.") that change the arithmetic in ways our llama and qwen2 do not compute.
# They are refused unless they hold the value that means "off".
_MUST_BE_OFF = {
    "expert_count": 0,
    "attention.causal": True,
    "attention.scale": 0.0,
    "attention.clamp_kqv": 0.0,
    "attention.sliding_window": 0,
    "embedding_scale": 1.0,
    "residual_scale": 1.0,
    "logit_scale": 1.0,
    "use_parallel_residual": False,
}

_STOP_TOKEN_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")


def config_from_gguf(file: GGUFFile, rope_factors: Sequence[float] | None = None) -> dict:
    """The ``config.json`` dict of the model in ``file``.

    ``rope_factors`` is the content of the tensor ``rope_freqs.weight`` (one divisor per rotary frequency), if
    the file has it. Raises ModelError for an architecture or a setting that is not supported, or a
    required key that is missing.
    """
    _refuse_part(file)
    if file.architecture not in _ARCHITECTURES:
        raise ModelError(
            f"{file.path}: GGUF architecture {shorten(file.architecture)} is not supported; "
            f"supported: {', '.join(sorted(_ARCHITECTURES))}."
        )
    _refuse_unsupported(file)
    architecture, model_type = _ARCHITECTURES[file.architecture]
    num_heads = _required(file, "attention.head_count")
    hidden_size = _required(file, "embedding_length")
    head_dim = _number(file, "attention.key_length", hidden_size // num_heads)
    if not head_dim >= 1:
        raise ModelError(f"{file.path}: heads of {head_dim} dimensions are not possible.")
    config = {
        "architectures": [architecture],
        "model_type": model_type,
        "hidden_size": hidden_size,
        "intermediate_size": _required(file, "feed_forward_length"),
        "num_hidden_layers": _required(file, "block_count"),
        "num_attention_heads": num_heads,
        "num_key_value_heads": _optional(file, "attention.head_count_kv", num_heads),
        "head_dim": head_dim,
        "max_position_embeddings": _required(file, "context_length"),
        "rms_norm_eps": _required(file, "attention.layer_norm_rms_epsilon"),
        "vocab_size": _vocab_size(file),
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_down.bias" in file.tensors,
        **_rope(file, head_dim, rope_factors),
    }
    return config | generation_config_from_gguf(file)


def generation_config_from_gguf(file: GGUFFile) -> dict:
    """The ids ``bos_token_id``, ``eos_token_id`` (a list if several end a turn) and ``pad_token_id``."""
    ids = {key: file.metadata.get(f"tokenizer.ggml.{key}") for key in _STOP_TOKEN_KEYS}
    stops = list(dict.fromkeys(value for value in ids.values() if isinstance(value, int)))
    found = {
        "bos_token_id": file.metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": (stops[0] if len(stops) == 1 else stops) if stops else None,
        "pad_token_id": file.metadata.get("tokenizer.ggml.padding_token_id"),
    }
    return {key: value for key, value in found.items() if value is not None}


def _optional(file: GGUFFile, key: str, default: object) -> object:
    return file.metadata.get(f"{file.architecture}.{key}", default)


@overload
def _number(file: GGUFFile, key: str, default: float) -> int | float: ...


@overload
def _number(file: GGUFFile, key: str, default: float | None) -> int | float | None: ...


def _number(file: GGUFFile, key: str, default: float | None) -> int | float | None:
    """A metadata value that must be a finite number where it is present."""
    value = _optional(file, key, default)
    if value is not default and (
        isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value)
    ):
        raise ModelError(f"{file.path}: {file.architecture}.{key} must be a number, got {shorten(value)}.")
    return value


def _required(file: GGUFFile, key: str) -> int | float:
    value = _optional(file, key, None)
    if isinstance(value, list):
        raise ModelError(
            f"{file.path}: {file.architecture}.{key} differs from layer to layer; "
            "only one value for all layers is supported."
        )
    # NaN compares as false
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ModelError(
            f"{file.path}: {file.architecture}.{key} must be a positive number, got {shorten(value)}."
        )
    return value


def _refuse_unsupported(file: GGUFFile) -> None:
    for key, off in _MUST_BE_OFF.items():
        value = _optional(file, key, off)
        if value != off:
            raise ModelError(f"{file.path}: {file.architecture}.{key} = {shorten(value)} is not supported.")


def _refuse_part(file: GGUFFile) -> None:
    parts = file.metadata.get("split.count", 0)
    if isinstance(parts, int) and parts > 1:
        raise ModelError(
            f"{file.path}: one of {parts} parts of a split model. Join them first: "
            "llama-gguf-split --merge FIRST_PART OUTPUT."
        )


def _vocab_size(file: GGUFFile) -> int:
    """Rows of the embedding: the metadata count may leave out padding rows."""
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ModelError(f"{file.path}: the tensor token_embd.weight is missing or not a matrix.")
    return embedding.shape[0]


def _rope(file: GGUFFile, head_dim: float, rope_factors: Sequence[float] | None) -> dict:
    theta = float(_number(file, "rope.freq_base", 10000.0))
    config: dict = {"rope_theta": theta, "rope_scaling": _rope_scaling(file)}
    rotary_dim = _number(file, "rope.dimension_count", head_dim)
    if rotary_dim != head_dim:
        config["partial_rotary_factor"] = rotary_dim / head_dim
    if rope_factors is not None and any(value != 1.0 for value in rope_factors):
        if config["rope_scaling"] is not None:
            raise ModelError(f"{file.path}: rope_freqs.weight together with rope.scaling is not supported.")
        config["rope_scaling"] = llama3_rope_from_factors(rope_factors, theta, rotary_dim)
    return config


def _rope_scaling(file: GGUFFile) -> dict | None:
    """The ``rope_scaling`` entry for the keys ``rope.scaling.*`` (and the older ``rope.scale_linear``)."""
    linear = _number(file, "rope.scale_linear", None)
    kind = _optional(file, "rope.scaling.type", "none" if linear is None else "linear")
    factor = _number(file, "rope.scaling.factor", linear)
    original = _number(file, "rope.scaling.original_context_length", None)
    if kind == "none":
        return None
    if kind == "linear":
        if factor is None or factor in (0.0, 1.0):
            return None
        stated = {} if not original else {"original_max_position_embeddings": int(original)}
        return {"rope_type": "linear", "factor": float(factor), **stated}
    if kind == "yarn":
        return _yarn(file)
    raise ModelError(
        f"{file.path}: rope.scaling.type {shorten(kind)} is not supported; supported: none, linear, yarn."
    )


def _yarn(file: GGUFFile) -> dict:
    factor = float(_required(file, "rope.scaling.factor"))
    scaling = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": int(_required(file, "rope.scaling.original_context_length")),
    }
    for key in ("beta_fast", "beta_slow"):
        value = _number(file, f"rope.scaling.yarn_{key}", None)
        if value is not None:
            scaling[key] = float(value)
    # llama.cpp multiplies its own mscale, 0.1 ln(factor) + 1, by this; Hugging Face stores the product
    attention = _number(file, "rope.scaling.attn_factor", None)
    if attention is not None:
        scaling["attention_factor"] = float(attention) * (0.1 * math.log(factor) + 1.0)
    return scaling


def llama3_rope_from_factors(factors: Sequence[float], theta: float, rotary_dim: float) -> dict:
    """Recover Llama 3.1's rope parameters from the frequency divisors a GGUF stores in their place.

    The divisor of a frequency with wavelength w is 1 for short waves, ``factor`` for long ones, and in
    between ``1 / ((1 - s) / factor + s)`` with ``s = (L / w - low) / (high - low)`` (Llama 3.1 reference
    code). s is a straight line in 1/w, so two points between the ends give L / (high - low) and
    low / (high - low); scaling L, low and high together changes nothing, so low = 1 is no restriction.
    Raises ModelError if the divisors do not have this form.
    """
    factor = max(factors, default=0.0)
    if len(factors) != rotary_dim // 2 or factor <= 1.0:
        raise ModelError(f"rope_freqs.weight must hold {rotary_dim // 2} divisors, the largest above 1.")
    inverse_wavelengths = [theta ** (-2.0 * i / rotary_dim) / (2.0 * math.pi) for i in range(len(factors))]
    middle = [
        (inverse, (1.0 / value - 1.0 / factor) / (1.0 - 1.0 / factor))
        for inverse, value in zip(inverse_wavelengths, factors, strict=True)
        if 1.0 + 1e-4 < value < factor * (1.0 - 1e-4)
    ]
    if len(middle) < 2:
        raise ModelError(
            "rope_freqs.weight has no smooth part between short and long waves; not a Llama 3.1 table."
        )
    (x0, y0), (x1, y1) = middle[0], middle[-1]
    slope = (y0 - y1) / (x0 - x1)
    offset = slope * x0 - y0
    if slope <= 0.0 or offset <= 0.0:
        raise ModelError("rope_freqs.weight does not fall from long to short waves; not a Llama 3.1 table.")
    scaling = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": _snap(1.0 + 1.0 / offset),
        "original_max_position_embeddings": round(slope / offset),
    }
    worst = max(
        abs(a / b - 1.0) for a, b in zip(_llama3_factors(scaling, inverse_wavelengths), factors, strict=True)
    )
    if worst > 1e-3:
        raise ModelError(f"rope_freqs.weight is not a Llama 3.1 table: the best fit is off by {worst:.1%}.")
    return scaling


def _llama3_factors(scaling: dict, inverse_wavelengths: Sequence[float]) -> list[float]:
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    result = []
    for inverse in inverse_wavelengths:
        smooth = (scaling["original_max_position_embeddings"] * inverse - low) / (high - low)
        smooth = min(max(smooth, 0.0), 1.0)
        result.append(1.0 / ((1.0 - smooth) / scaling["factor"] + smooth))
    return result


def _snap(value: float) -> float:
    """The nearest integer if float32 rounding explains the difference, else the value itself."""
    nearest = float(round(value))
    return nearest if abs(value - nearest) < 1e-3 else value
