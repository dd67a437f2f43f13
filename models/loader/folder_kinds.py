"""What a folder is: a model we run, or else what to say about it, before its weights are looked for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ...errors import ModelError
from ..config import read_architectures
from ..fields import list_names, shorten
from ..quantization.registry import check_quantization
from ..registry import resolve
from ..rope_fields import merge_overrides
from .files import check_regular, check_size, read_json

CONFIG: Final = "config.json"
_ADAPTER: Final = "adapter_config.json"
_TEXT: Final = (".json", ".jinja", ".model", ".txt", ".tiktoken")
_READ: Final = (*_TEXT, ".safetensors", ".bin", ".gguf")


def check_folder(folder: Path, overrides: Mapping[str, Any]) -> None:
    """Raise ModelError unless ``config.json`` in ``folder``, with ``overrides``, is of a model that we run.

    Its architecture comes first, then its quantization; nothing else is asked.
    """
    refuse_special_files(folder)
    config = folder / CONFIG
    if not config.exists():
        raise ModelError(f"{folder}: {_what_it_is(folder)}.")
    raw = merge_overrides(read_json(config), overrides)
    resolve(read_architectures(raw))
    check_quantization(raw)


def refuse_special_files(folder: Path) -> None:
    """Raise ModelError for pipes, devices and endless texts in ``folder`` where somebody would open them."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.name.endswith(_READ)]
    for name in names:
        file = folder / name
        if not os.path.exists(file) or file.is_dir():  # a link to nothing is missed when it is needed
            continue
        check_regular(file)
        if name.endswith(_TEXT):
            check_size(file)


def describe_adapter(folder: Path) -> str | None:
    """What to say of a folder with an adapter in place of weights; None if there is no adapter."""
    config = folder / _ADAPTER
    if not config.is_file():
        return None
    base = read_json(config).get("base_model_name_or_path")
    of = shorten(base) if base else "another model"
    return (
        f"it holds an adapter ({_ADAPTER}) of {of}, not a whole model:"
        " merge the two first (in PEFT: merge_and_unload, then save_pretrained) and give the merged folder"
    )


def _what_it_is(folder: Path) -> str:
    """Why there is no config.json in ``folder``, in words."""
    adapter = describe_adapter(folder)
    if adapter is not None:
        return adapter
    if not any(folder.iterdir()):
        return "the folder is empty"
    index = folder / "model_index.json"
    if index.is_file():
        kind = shorten(read_json(index).get("_class_name"))
        return f"a pipeline of diffusers ({kind}); only language models are supported"
    absent = f"there is no {CONFIG}; a model folder needs one"
    if (folder / "params.json").is_file():
        return f"{absent}. These are weights in their author's own form; give the model in Hugging Face form"
    inside = sorted(
        str(found.parent) for pattern in ("*", "*/*") for found in folder.glob(f"{pattern}/{CONFIG}")
    )
    if inside:
        return f"{absent}. Did you mean {list_names(inside)}?"
    if (folder.resolve().parent / CONFIG).is_file():
        return f"{absent}. Did you mean {folder.resolve().parent}?"
    return absent
