"""Opening a checkpoint for a model that is there already."""

from __future__ import annotations

import os
from typing import Any

import torch

from ...errors import WeightsError
from ..config import ModelConfig
from .checkpoint import Checkpoint
from .gguf import open_gguf
from .gguf_file import read_gguf
from .load import open_folder, read_config
from .resolve import resolve_model


def open_weights(
    path: str | os.PathLike[str],
    config: ModelConfig,
    dtype: torch.dtype,
    load_format: str = "auto",
    **where: Any,
) -> Checkpoint:
    """The tensors of the checkpoint at ``path``, for a model of ``config``.

    ``path``: a folder, ``.gguf`` file or hub id; ``where``: ``revision`` and ``download_dir`` of that id.
    Raises WeightsError if it is one of another model, ModelError and ConfigError as a first load does.
    """
    source = resolve_model(os.fspath(path), load_format, where.get("revision"), where.get("download_dir"))
    gguf_file = read_gguf(source.path) if source.is_gguf else None
    found = ModelConfig.from_dict(read_config(source, gguf_file))
    for name in ("architectures", "vocab_size", "hidden_size", "num_layers"):
        got, want = getattr(found, name), getattr(config, name)
        if got != want:
            raise WeightsError(
                f"{path} is of another model: {name} is {got!r} there, {want!r} in this engine."
            )
    if gguf_file is not None:
        return open_gguf(gguf_file, config.num_heads, config.num_kv_heads, dtype)
    checkpoint = open_folder(source)
    if checkpoint is None:
        raise WeightsError(f"load_format={load_format!r} has no weights to update from.")
    return checkpoint
