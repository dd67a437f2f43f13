"""Weights of a GGUF file, one tensor at a time, under their Hugging Face names.

Quantised tensors are expanded by ``gguf.quants.dequantize``; F32, F16, BF16 and F64 tensors are views
of the mapped file. Data layouts: ggml's ``ggml-common.h``; tensor names: llama.cpp's
``gguf-py/gguf/constants.py``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING

import torch

from ...errors import MissingDependencyError, ModelError, WeightsError
from .checkpoint import Checkpoint, StoredTensor
from .gguf_file import GGUFFile, GGUFTensor

if TYPE_CHECKING:
    import numpy as np

ROPE_FACTORS = "rope_freqs.weight"

_TOP_LEVEL = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_EXPAND_AT_ONCE = 1 << 17
"""Values expanded per call. The package works in numpy with several temporaries, in 16 rows at a time:
large tensors fall out of the CPU's caches, narrow ones spend the time in calls (5 to 10
times slower as measured)."""

_LAYER_NAME = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")


def open_gguf(
    file: GGUFFile, num_heads: int, num_kv_heads: int, dtype: torch.dtype = torch.float32
) -> Checkpoint:
    """Open the tensors of ``file`` as a checkpoint with Hugging Face names and row order.

    ``num_heads`` and ``num_kv_heads`` are needed to undo llama.cpp's reordering of the rows of q and k.
    Quantised tensors come out in ``dtype``, the others in the type they are stored in.
    Every tensor is checked against the size of the file before the first is read. Raises
    MissingDependencyError without the ``gguf`` package, WeightsError for a truncated file or a tensor
    nobody knows, ModelError for a quantization type the package cannot expand.
    """
    package = _gguf_package()
    names = {name: hf_name(file, name) for name in file.tensors if name != ROPE_FACTORS}
    sizes = {name: _num_bytes(package, file, file.tensors[name]) for name in file.tensors}
    heads = {"attn_q": num_heads, "attn_k": num_kv_heads} if file.architecture == "llama" else {}

    def stream() -> Iterator[StoredTensor]:
        data = _map(file)
        for name, mapped_name in names.items():
            raw = data[file.tensors[name].offset :][: sizes[name]]
            part = name.split(".")[-2]
            if part in heads:
                raw = _undo_row_order(file, file.tensors[name], raw, heads[part])
            yield StoredTensor(mapped_name, _decode(package, file.tensors[name], raw, dtype), sizes[name])

    shapes = {mapped_name: file.tensors[name].shape for name, mapped_name in names.items()}
    return Checkpoint(stream(), total_bytes=sum(sizes[name] for name in names), shapes=shapes)


def read_rope_factors(file: GGUFFile) -> list[float] | None:
    """The content of ``rope_freqs.weight``, or None if the file has no such tensor."""
    info = file.tensors.get(ROPE_FACTORS)
    if info is None:
        return None
    package = _gguf_package()
    size = _num_bytes(package, file, info)
    return _decode(package, info, _map(file)[info.offset :][:size], torch.float32).flatten().tolist()


def hf_name(file: GGUFFile, name: str) -> str:
    """The Hugging Face name of the tensor ``name``. Raises WeightsError if there is none."""
    if name in _TOP_LEVEL:
        return _TOP_LEVEL[name]
    match = _LAYER_NAME.fullmatch(name)
    if match is None or match[2] not in _IN_LAYER:
        raise WeightsError(f"{file.path}: the tensor {name!r} has no place in a {file.architecture} model.")
    return f"model.layers.{match[1]}.{_IN_LAYER[match[2]]}.{match[3]}"


def _gguf_package() -> ModuleType:
    try:
        import gguf
        import gguf.quants
    except ImportError as error:
        raise MissingDependencyError(
            "Loading the weights of a GGUF file needs the package gguf: pip install 'gguf>=0.17.1'"
        ) from error
    return gguf


def _map(file: GGUFFile) -> np.ndarray:
    """The whole file as bytes. Copy-on-write: torch wants writable memory, the file stays untouched."""
    import numpy as np

    return np.asarray(np.memmap(file.path, dtype=np.uint8, mode="c"))


def _num_bytes(package: ModuleType, file: GGUFFile, info: GGUFTensor) -> int:
    """Bytes ``info`` takes in the file, after checking type, row length and the end of the file."""
    try:
        kind = package.GGMLQuantizationType(info.ggml_type)
    except ValueError as error:
        raise WeightsError(f"{file.path}: {info.name} has the unknown ggml type {info.ggml_type}.") from error
    block, block_bytes = package.GGML_QUANT_SIZES[kind]
    if not info.shape or info.shape[-1] % block:
        raise WeightsError(
            f"{file.path}: {info.name} of shape {info.shape} does not divide into {kind.name} blocks."
        )
    size = math.prod(info.shape) // block * block_bytes
    if info.offset + size > file.size:
        raise WeightsError(
            f"{file.path}: truncated; {info.name} ends at byte {info.offset + size}, the file at {file.size}."
        )
    return size


def _decode(package: ModuleType, info: GGUFTensor, raw: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """Bytes of one tensor -> tensor of ``info.shape``: plain types as they are, all others in ``dtype``."""
    import numpy as np

    plain = _plain_dtypes(package).get(info.ggml_type)
    if plain is not None:
        return torch.from_numpy(raw).view(plain).view(info.shape)
    kind = package.GGMLQuantizationType(info.ggml_type)
    try:
        with np.errstate(all="ignore"):  # odd scales give odd weights; numpy need not warn of each
            return _expand(package, kind, raw, dtype).view(info.shape)
    except NotImplementedError as error:
        raise ModelError(f"{info.name}: the gguf package cannot expand the type {kind.name}.") from error


def _expand(package: ModuleType, kind: int, raw: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """Expand quantised bytes to a flat tensor of ``dtype``, piece by piece.

    A block is expanded without looking at its neighbours, so pieces need not be rows of the tensor.
    """
    block, block_bytes = package.GGML_QUANT_SIZES[kind]
    values = torch.empty(raw.size // block_bytes * block, dtype=dtype, device="cpu")
    step = _EXPAND_AT_ONCE // block
    for start in range(0, raw.size // block_bytes, step):
        piece = raw[start * block_bytes : (start + step) * block_bytes]
        # the package takes 16 rows at a time: give it 16, or one if the last piece does not divide
        num_rows = 16 if piece.size % (16 * block_bytes) == 0 else 1
        expanded = torch.from_numpy(package.quants.dequantize(piece.reshape(num_rows, -1), kind))
        target = values[start * block : (start + step) * block].view(num_rows, -1)
        # row by row, each below the size from which torch shares a copy among threads: thousands of
        # short parallel copies take ten times as long as soon as other work keeps the cores busy
        for row in range(num_rows):
            target[row].copy_(expanded[row])
    return values


def _plain_dtypes(package: ModuleType) -> dict[int, torch.dtype]:
    kinds = package.GGMLQuantizationType
    return {
        int(kinds.F32): torch.float32,
        int(kinds.F16): torch.float16,
        int(kinds.BF16): torch.bfloat16,
        int(kinds.F64): torch.float64,
    }


def _undo_row_order(file: GGUFFile, info: GGUFTensor, raw: np.ndarray, num_heads: int) -> np.ndarray:
    """Put the rows of a q or k projection back into Hugging Face order.

    Hugging Face rotates halves: within a head, row j pairs with row j + D/2. llama.cpp's llama rotates
    neighbours, so its converter interleaves the halves (row 2j is j, row 2j + 1 is j + D/2). A row is a
    whole number of quantization blocks, so moving rows needs no expanding.
    """
    num_rows = info.shape[0]
    if min(num_heads, *info.shape) < 1 or num_rows % (2 * num_heads):
        raise WeightsError(
            f"{file.path}: {info.name} of shape {info.shape} has no even number of rows for each of"
            f" {num_heads} heads."
        )
    rows = raw.reshape(num_heads, num_rows // num_heads // 2, 2, -1)
    return rows.swapaxes(1, 2).reshape(-1)
