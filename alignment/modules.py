"""What a module must be to be aligned, and what must not be going on around it: each refused by name."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..errors import AlignmentError, ConfigError, ModelError, WeightsError, short
from ..kernels.native import load as native_kernels
from .decoder import Decoder

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_ADAPTERS = ("lora_", ".base_layer.", "base_model.")
_SHOWN = 8


def check_module(module: Any) -> None:
    """Raise ModelError unless this is a causal language model of transformers, itself and not wrapped."""
    inner = getattr(module, "module", None)
    wrapped = getattr(module, "_orig_mod", inner)
    if isinstance(wrapped, nn.Module):
        raise ModelError(
            f"align: this is a {type(module).__name__} around the model. Align what is inside"
            f" ({'module._orig_mod' if wrapped is not inner else 'module.module'})"
            + (", uncompiled." if wrapped is not inner else ".")
        )
    if any(marker in name for name, _ in module.named_parameters() for marker in _ADAPTERS):
        raise ModelError(
            "align: the model has adapters (LoRA) that are not merged; an engine computes with merged weights"
            " and would differ. Merge them (peft: model.merge_and_unload()), or align the base model."
        )
    config = getattr(module, "config", None)
    if not hasattr(config, "to_dict"):
        raise ModelError(
            "align: needs a model of transformers, whose config says what it is, got"
            f" {type(module).__name__}."
        )
    if getattr(config, "quantization_config", None) is not None or hasattr(module, "hf_quantizer"):
        raise ModelError("align: the model is quantised; only weights of floats can be aligned.")


def choose_dtype(module: nn.Module, dtype: Any) -> torch.dtype:
    """The dtype that the engine computes in: given, or that of all parameters. Raises ConfigError."""
    if dtype is None:
        found = {parameter.dtype for parameter in module.parameters()}
        if len(found) != 1:
            raise ConfigError(
                f"align: the parameters are of several types, {sorted(map(str, found))}. Say which one the"
                " engine has: align(module, dtype='bfloat16')."
            )
        [dtype] = found
    chosen = DTYPES.get(dtype.removeprefix("torch.")) if isinstance(dtype, str) else dtype
    if chosen not in DTYPES.values():
        raise ConfigError(f"align: dtype must be one of {', '.join(DTYPES)}, got {short(dtype)}.")
    assert isinstance(chosen, torch.dtype)
    return chosen


def device_of(module: nn.Module, dtype: torch.dtype) -> torch.device:
    """The one device of all parameters. Raises ModelError, or ConfigError where kernels are missing."""
    devices = {parameter.device for parameter in module.parameters()}
    if len(devices) != 1:
        raise ModelError(f"align: the parameters are on several devices, {sorted(map(str, devices))}.")
    [device] = devices
    if device.type == "cpu":
        if native_kernels() is None:
            raise ConfigError(
                "align on a CPU needs the C kernels, which were not built. Install a C compiler and Rootlet"
                " again."
            )
        if dtype is torch.float16:
            raise ConfigError("align on a CPU takes bfloat16 or float32, as deterministic=True does.")
    elif device.type == "cuda":
        from ..kernels.gpu.release import check_triton

        check_triton()
    else:
        raise ModelError(f"align: the parameters are on {device}; the kernels run on cpu and cuda.")
    return device


def check_parameters(module: nn.Module, decoder: Decoder) -> None:
    """Raise WeightsError unless the module's parameters are those of the decoder, whole tensors all."""
    found = dict(module.named_parameters(remove_duplicate=False))
    flaws = []
    for name, source in decoder.tied.items():
        if found.pop(name, None) is not found.get(source):
            flaws.append(f"{name} is not tied to {source}, as config.tie_word_embeddings says")
    flaws += [f"missing: {name}" for name in decoder.shapes if name not in found]
    flaws += [f"not known to the engine: {name}" for name in found if name not in decoder.shapes]
    for name, shape in decoder.shapes.items():
        parameter = found.get(name)
        if parameter is None:
            continue
        if hasattr(parameter, "placements") or hasattr(parameter, "ds_id"):  # DTensor of FSDP, ZeRO
            flaws.append(f"{name} is divided among processes; gather it first")
        elif tuple(parameter.shape) != shape:
            flaws.append(f"{name} is {list(parameter.shape)}, the config makes it {list(shape)}")
        elif not parameter.is_floating_point():
            flaws.append(f"{name} is {parameter.dtype}, not of floats")
    if flaws:
        more = f"; and {len(flaws) - _SHOWN} more" if len(flaws) > _SHOWN else ""
        raise WeightsError(f"align: the parameters do not fit the model: {'; '.join(flaws[:_SHOWN])}{more}.")


def check_surroundings(module: nn.Module, device: torch.device) -> None:
    """Raise AlignmentError while something is on that would compute differently."""
    if torch.is_autocast_enabled(device.type):
        raise AlignmentError(
            f"Autocast is on ({torch.get_autocast_dtype(device.type)}), which casts what stands around an"
            " aligned model. Switch it off: bf16=False and fp16=False in the trainer's arguments, or"
            f" torch.autocast({device.type!r}, enabled=False); align(module, dtype='bfloat16') computes in"
            " bf16 by itself."
        )
    if torch.compiler.is_compiling() or getattr(module, "_compiled_call_impl", None) is not None:
        raise AlignmentError(
            "An aligned model cannot be compiled (torch.compile): compilers choose kernels of their own."
            " Leave it uncompiled, or call undo()."
        )
    if not module.training:
        return
    dropout = getattr(getattr(module, "config", None), "attention_dropout", 0.0)
    others = [name for name, m in module.named_modules() if isinstance(m, nn.Dropout) and m.p > 0]
    if dropout or others:
        what = f"config.attention_dropout is {dropout}" if dropout else f"{others[0]} drops out"
        raise AlignmentError(
            f"{what}, and the module is in training mode; an engine drops nothing. Set it to 0, or call"
            " module.eval()."
        )
