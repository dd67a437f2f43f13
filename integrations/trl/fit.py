"""Whether a trainer and an engine fit together. All checks are made before anything is changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ...errors import ConfigError, short
from ...sampling.params import SamplingParams
from .rows import sampling_params

if TYPE_CHECKING:
    from ...engine.engine import Engine

_NEEDED = ("use_vllm", "vllm_mode", "eos_token_ids", "max_completion_length", "temperature", "accelerator")
_OWN_SEEDS = ("seed", "n")


def check_fit(trainer: Any, engine: Engine, *, allow_dtype_mismatch: bool = False) -> None:
    """Raise ConfigError for a trainer that this engine cannot draw completions for.

    Also raises InvalidParameterError or UnknownOptionError for ``generation_kwargs`` that the engine has no
    such parameters for.
    """
    missing = [name for name in _NEEDED if not hasattr(trainer, name)]
    if missing:
        raise ConfigError(
            "A GRPOTrainer, RLOOTrainer or DistillationTrainer of TRL is needed, got"
            f" {type(trainer).__name__} without {', '.join(missing)}."
        )
    if getattr(trainer, "_is_vlm", False):
        raise ConfigError("The trainer's model takes images, and the engine does not: train a text model.")
    own = [name for name in _OWN_SEEDS if name in (trainer.args.generation_kwargs or {})]
    if own:
        raise ConfigError(
            f"generation_kwargs has {', '.join(own)}: rows of one prompt would be equal. Seeds follow from"
            " the trainer's seed (args.seed), and num_generations is the trainer's too."
        )
    SamplingParams(**sampling_params(trainer))
    _check_tokenizer(trainer, engine)
    if not allow_dtype_mismatch:
        _check_dtype(trainer, engine)


def _check_tokenizer(trainer: Any, engine: Engine) -> None:
    """Tokens that both tokenizers know must have one id; one of them may know more."""
    if engine.tokenizer is None:  # the engine sees token ids only
        return
    processing = trainer.processing_class
    theirs = getattr(processing, "tokenizer", processing).get_vocab()
    by_id = {index: token for token, index in theirs.items()}
    ours = engine.tokenizer.get_vocab().items()
    differ = [(t, i) for t, i in ours if theirs.get(t, i) != i or by_id.get(i, t) != t]
    if differ:
        token, index = min(differ, key=lambda pair: pair[1])
        raise ConfigError(
            f"The trainer's tokenizer is another one than the engine's: {len(differ)} tokens have other ids,"
            f" the first is {short(token)}, {index} for the engine and {theirs.get(token, 'unknown')} for the"
            f" trainer, where {index} is {short(by_id.get(index, 'unknown'))}. Build both from one model, or"
            " pass tokenizer_path to the engine."
        )


def _check_dtype(trainer: Any, engine: Engine) -> None:
    """The engine computes in the dtype that the trainer's forward pass computes in."""
    args = trainer.args
    if args.bf16 or args.fp16:
        computes, why = (
            "bfloat16" if args.bf16 else "float16",
            f"args.{'bf16' if args.bf16 else 'fp16'} is on",
        )
    else:
        floats = (p.dtype for p in trainer.model.parameters() if p.dtype.is_floating_point)
        computes = str(next(floats, torch.float32)).removeprefix("torch.")
        why = "so are its parameters"
    dtype = engine.get_server_info()["dtype"]
    if dtype != computes:
        raise ConfigError(
            f"The trainer computes in {computes} ({why}), the engine in {dtype}: their log-probabilities"
            f" would differ by more than they need to, which biases every update. Build the engine with"
            f" dtype={computes!r}, change the trainer (TRL sets bf16 unless told bf16=False), or pass"
            " allow_dtype_mismatch=True."
        )


def missing_eos(trainer: Any, engine: Engine) -> list[int]:
    """Tokens that end an output of the engine but are none of the trainer's ends: it would call such a
    completion truncated."""
    ends: Any = engine.get_server_info()["eos_token_ids"]
    return [token for token in ends if token not in trainer.eos_token_ids]
