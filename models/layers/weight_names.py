"""Checkpoint names that say the same in other words, and what names tell of weights we do not take."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final

from .names import Names

# what torch.compile, DistributedDataParallel, FSDP and PEFT put in front of every name
_WRAPPERS: Final = ("_orig_mod.", "module.", "_fsdp_wrapped_module.", "base_model.model.")

# what wrappers put anywhere in a name -> what stood there
_WRAPPED_PARTS: Final = dict.fromkeys((*sorted(_WRAPPERS, key=len, reverse=True), ".base_layer"), "") | {
    "model.language_model.": "model.",
    ".modules_to_save.default": "",
}

# part of a name -> whose weights have it
_FOREIGN: Final = {
    ".lora_A.": "a LoRA adapter that was not merged (merge it first: merge_and_unload in PEFT)",
    ".lora_magnitude_vector": "a DoRA adapter that was not merged (merge it first: merge_and_unload in PEFT)",
    ".qweight": "GPTQ or AWQ quantization",
    ".quant_state.": "bitsandbytes quantization",
    ".absmax": "bitsandbytes quantization",
    ".SCB": "bitsandbytes quantization",
    ".weight_packed": "compressed-tensors quantization",
    ".weight_scale": "FP8 or INT8 quantization",
    ".scales": "MLX quantization",
}


def match_names(found: Collection[str], wanted: Collection[str], names: Names) -> Callable[[str], str] | None:
    """How to rename the tensors ``found`` in a checkpoint to the names ``wanted``; None if not at all.

    Told by the embedding table, names may lack the body's (``model.``) or have it once too often, as those of
    bare models do, or carry the prefix of a wrapper that was saved with the model.
    """
    table = f"{names.embedding}.weight"
    bodies = ("", f"{names.body}.")
    heads = (f"{names.head}.", f"{names.scores}.")
    ours = [name for name in wanted if name.endswith(table)]
    theirs = [name for name in found if name.endswith(table)]
    if len(ours) != 1 or len(theirs) != 1 or ours == theirs:
        return None
    wanted_body = ours[0].removesuffix(table)
    wrapper, body = _split_prefix(theirs[0].removesuffix(table))
    if body not in bodies or wanted_body not in bodies:
        return None

    def rename(name: str) -> str:
        inner = name.removeprefix(wrapper)
        if inner.startswith(heads) or body == wanted_body:
            return inner
        return wanted_body + inner.removeprefix(body)

    return rename


def describe_foreign(names: Collection[str]) -> str | None:
    """Whose weights ``names`` are, if they are of a kind we do not load; None if they do not tell."""
    for part, owner in _FOREIGN.items():
        if any(part in name for name in names):
            return owner
    return None


def unwrapped(name: str, known: Collection[str]) -> str | None:
    """The name in ``known`` that ``name`` is once what wrappers put into it is taken out; None if none is."""
    for part, instead in _WRAPPED_PARTS.items():
        name = name.replace(part, instead)
    return name if name in known else None


def _split_prefix(prefix: str) -> tuple[str, str]:
    """What wrappers have added in front, and the rest."""
    rest = prefix
    while wrapper := next((known for known in _WRAPPERS if rest.startswith(known)), None):
        rest = rest.removeprefix(wrapper)
    return prefix.removesuffix(rest) if rest else prefix, rest
