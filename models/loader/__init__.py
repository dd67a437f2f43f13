"""From a model's name or path to a model with weights.

One file per format, each giving a stream of named tensors that holds one tensor at a time:
``safetensors``, ``torch_bin``, ``gguf``, ``dummy``. ``resolve`` finds the files, ``load`` joins the parts.
"""

from __future__ import annotations

from .load import BeforeWeights, LoadedModel, load_model
from .resolve import LOAD_FORMATS, ModelSource, resolve_model

__all__ = ["LOAD_FORMATS", "BeforeWeights", "LoadedModel", "ModelSource", "load_model", "resolve_model"]
