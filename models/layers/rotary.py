"""Cosine and sine tables of rotary position embedding (RoPE, arXiv:2104.09864) with its scalings.

The angle of position p at pair i is ``p * inv_freq[i]`` with ``inv_freq[i] = theta ** (-2i / rotary_dim)``
before scaling. Every row of a table depends on its position only: never on how long the sequence
is now, so cached keys stay right and a prefix can be shared. That decides the two scalings which
their authors define by the current length:

* ``dynamic`` (NTK-aware, the base grows with the length): within ``max_position_embeddings`` rows
  are the unscaled ones. Beyond, row p is what transformers uses at the step that adds token p
  to its cache, so decoding past the limit agrees with it; a prompt that is itself beyond the
  limit differs there, since transformers rotates all of it by its full length.
* ``longrope``: a table for more positions than the original length uses the long factors for all of
  its rows, a table within it the short ones. To serve short prompts exactly as trained, build the
  table for the original length.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .rope_config import RopeConfig


class RotaryTable:
    """The table of one rotary configuration on one device, shared by the layers that use it.

    It is built at the first use, for the number of positions last set, because a file may promise
    a million positions where an engine serves a few thousand.
    """

    __slots__ = ("_cos_sin", "_device", "_num_positions", "config")

    def __init__(self, config: RopeConfig, num_positions: int, device: torch.device) -> None:
        self.config = config
        self._num_positions = num_positions
        self._device = device
        self._cos_sin: Tensor | None = None

    def resize(self, num_positions: int) -> None:
        """Serve positions ``0..num_positions-1`` from now on; a table already built is dropped."""
        if num_positions != self._num_positions:
            self._num_positions = num_positions
            self._cos_sin = None

    @property
    def cos_sin(self) -> Tensor:
        """The table ``[num_positions, rotary_dim]`` fp32, cos | sin."""
        if self._cos_sin is None:
            self._cos_sin = build_cos_sin(self.config, self._num_positions).to(self._device)
        return self._cos_sin


def build_cos_sin(config: RopeConfig, num_positions: int) -> Tensor:
    """Compute cos | sin ``[num_positions, rotary_dim]`` fp32 on the CPU, scaled by the attention factor."""
    half = config.rotary_dim // 2
    inv_freq, scale = inverse_frequencies(config, num_positions)
    angles = torch.arange(num_positions, dtype=torch.float32, device="cpu")[:, None] * inv_freq
    table = torch.empty(num_positions, config.rotary_dim, dtype=torch.float32, device="cpu")
    torch.mul(angles.cos(), scale, out=table[:, :half])
    torch.mul(angles.sin_(), scale, out=table[:, half:])
    return table


def inverse_frequencies(config: RopeConfig, num_positions: int) -> tuple[Tensor, float]:
    """Return the frequencies and the factor on cos and sin for a table of ``num_positions``.

    The frequencies are ``[rotary_dim / 2]`` fp32, or one row per position ``[num_positions,
    rotary_dim / 2]`` where they depend on it (dynamic scaling past the original length).
    """
    if config.rope_type == "linear":
        return _unscaled(config) / _given(config.factor), 1.0
    if config.rope_type == "dynamic":
        return _dynamic(config, num_positions), 1.0
    if config.rope_type == "llama3":
        return _llama3(config), 1.0
    if config.rope_type == "yarn":
        return _yarn(config), _yarn_attention_factor(config)
    if config.rope_type == "longrope":
        return _longrope(config, num_positions), _longrope_attention_factor(config)
    return _unscaled(config), 1.0


def _exponents(config: RopeConfig) -> Tensor:
    """``2i / rotary_dim`` for each pair i, ``[rotary_dim / 2]`` fp32."""
    return torch.arange(0, config.rotary_dim, 2, dtype=torch.float32, device="cpu") / config.rotary_dim


def _unscaled(config: RopeConfig) -> Tensor:
    """The frequencies of RoPE as published."""
    return 1.0 / config.theta ** _exponents(config)


def _dynamic(config: RopeConfig, num_positions: int) -> Tensor:
    """NTK-aware scaling by the length so far: base * ((f * n / m) - (f - 1)) ** (d / (d - 2)).

    f is the factor, m the original length, d the rotated dimensions and n the length that ends with
    the row's position, at least m.
    """
    if num_positions <= config.max_position_embeddings:
        return _unscaled(config)
    lengths = torch.arange(1, num_positions + 1, dtype=torch.float32, device="cpu").clamp(
        min=config.max_position_embeddings
    )
    factor = _given(config.factor)
    stretch = factor * lengths / config.max_position_embeddings - (factor - 1)
    bases = config.theta * stretch ** (config.rotary_dim / (config.rotary_dim - 2))
    return 1.0 / bases[:, None] ** _exponents(config)


def _llama3(config: RopeConfig) -> Tensor:
    """Llama 3.1: slow wavelengths are divided by the factor, fast ones kept, those between blended.

    The bounds are the original length divided by low_freq_factor and by high_freq_factor
    (arXiv:2407.21783 describes the longer context, Meta's reference code the formula).
    """
    factor, slow, fast = map(_given, (config.factor, config.low_freq_factor, config.high_freq_factor))
    inv_freq = _unscaled(config)
    rotations = config.original_max_position_embeddings / (2 * math.pi / inv_freq)
    blend = (rotations - slow) / (fast - slow)
    blended = (1 - blend) * inv_freq / factor + blend * inv_freq
    scaled = torch.where(rotations < slow, inv_freq / factor, blended)
    return torch.where(rotations > fast, inv_freq, scaled)


def _yarn(config: RopeConfig) -> Tensor:
    """YaRN (arXiv:2309.00071): interpolate the slow pairs by the factor, keep the fast ones, ramp between."""
    low = _yarn_pair(config, config.beta_fast or 32)
    high = _yarn_pair(config, config.beta_slow or 1)
    if config.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.rotary_dim - 1)
    if low == high:
        high += 0.001  # a ramp of no width would divide by zero
    ramp = (torch.arange(config.rotary_dim // 2, dtype=torch.float32, device="cpu") - low) / (high - low)
    keep = 1 - ramp.clamp(0, 1)
    wavelengths = config.theta ** _exponents(config)
    return 1.0 / (_length_factor(config) * wavelengths) * (1 - keep) + 1.0 / wavelengths * keep


def _yarn_pair(config: RopeConfig, rotations: float) -> float:
    """The (fractional) pair that turns ``rotations`` times within the original length."""
    length = config.original_max_position_embeddings
    return config.rotary_dim * math.log(length / (rotations * 2 * math.pi)) / (2 * math.log(config.theta))


def _yarn_attention_factor(config: RopeConfig) -> float:
    """YaRN's temperature on the attention scores, as a factor on cos and sin."""
    if config.attention_factor is not None:
        return config.attention_factor

    def temperature(weight: float) -> float:
        factor = _length_factor(config)
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if config.mscale and config.mscale_all_dim:
        return temperature(config.mscale) / temperature(config.mscale_all_dim)
    return temperature(1.0)


def _longrope(config: RopeConfig, num_positions: int) -> Tensor:
    """LongRoPE (arXiv:2402.13753): every pair has its own searched factor, short or long."""
    is_long = num_positions > config.original_max_position_embeddings
    factors = torch.tensor(
        config.long_factor if is_long else config.short_factor, dtype=torch.float32, device="cpu"
    )
    return 1.0 / (factors * config.theta ** _exponents(config))


def _longrope_attention_factor(config: RopeConfig) -> float:
    """LongRoPE's factor on cos and sin: sqrt(1 + ln(factor) / ln(original length))."""
    if config.attention_factor is not None:
        return config.attention_factor
    factor = _length_factor(config)
    if factor <= 1:
        return 1.0
    return math.sqrt(1 + math.log(factor) / math.log(config.original_max_position_embeddings))


def _length_factor(config: RopeConfig) -> float:
    """The factor, or the ratio of the lengths where the file gives none."""
    if config.factor is not None:
        return config.factor
    return config.max_position_embeddings / config.original_max_position_embeddings


def _given(value: float | None) -> float:
    """A number that a scaling cannot do without: configurations are read with this checked."""
    assert value is not None
    return value
