"""Which scheme holds the weights of a checkpoint that ``config.json`` calls quantised."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError, ModelError
from ..fields import shorten

if TYPE_CHECKING:
    from ..layers.matrices import Scheme

MakeScheme = Callable[[Mapping[str, Any]], "Scheme"]
"""From the ``quantization_config`` to a scheme. Raises ModelError for settings that it does not know."""

_registered: dict[str, MakeScheme] = {}


def register_quantization(method: str, scheme: MakeScheme, *, replace: bool = False) -> None:
    """Read checkpoints of that ``quant_method`` by ``scheme(quantization_config)``, in every later engine.

    Raises ConfigError if the name is taken and ``replace`` is false.
    """
    if method in _registered and not replace:
        raise ConfigError(f"The quantisation {method!r} is already registered; replace=True replaces it.")
    _registered[method] = scheme


def check_quantization(raw: Mapping[str, Any]) -> None:
    """Raise ModelError naming the quantisation in ``config.json``, if there is one that is not known."""
    settings = _settings(raw)
    if settings is None or _method(settings) in _registered:
        return
    raise ModelError(
        f"config.json: quantization_config with quant_method {shorten(_method(settings))} is not supported."
        " Use the unquantised weights, or a GGUF file of the model (Q4_0, Q4_K, Q8_0 and the like are read)."
        " Where a merge to 16 bits has left the entry behind, override it with json_model_override_args:"
        ' {"quantization_config": null}.'
    )


def read_scheme(raw: Mapping[str, Any]) -> Scheme | None:
    """The scheme that a checked ``config.json`` asks for; None if its weights are plain floats."""
    settings = _settings(raw)
    return None if settings is None else _registered[_method(settings)](settings)


def _settings(raw: Mapping[str, Any]) -> Any:
    """The entry about quantisation; None without one."""
    return raw.get("quantization_config") or raw.get("quantization") or None


def _method(settings: Any) -> Any:
    """Its name. MLX gives none: ``{"group_size": 64, "bits": 4}``."""
    if not isinstance(settings, Mapping):
        return settings
    return settings.get("quant_method", "mlx" if "bits" in settings else None)
