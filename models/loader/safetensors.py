"""Weights in safetensors files: mapped into memory, read tensor by tensor.

Format: the safetensors specification (huggingface/safetensors, ``README``): an 8-byte header length,
a JSON header with type, shape and byte range of every tensor, then the data.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ...errors import WeightsError
from .checkpoint import Checkpoint, StoredTensor
from .files import check_regular
from .shards import Shards

_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def open_safetensors(shards: Shards) -> Checkpoint:
    """Open safetensors files as one checkpoint.

    The headers of all files are checked now, so that a truncated file or an index that promises too
    much fails before anything is loaded. Tensors are views of the mapped file, valid as long as the
    consumer keeps them. Raises WeightsError naming file and reason.
    """
    headers = {file: _read_header(file) for file in shards.files}
    for file, header in headers.items():
        shards.check_names(file, set(header))
    _refuse_duplicates(headers)
    entries = [entry for header in headers.values() for entry in header.values()]
    dtypes = [_FLOATS[entry["dtype"]] for entry in entries if entry["dtype"] in _FLOATS]
    return Checkpoint(
        tensors=_stream(headers),
        total_bytes=sum(_num_bytes(entry) for entry in entries),
        dtype=dtypes[0] if dtypes else None,
        shapes={name: tuple(entry["shape"]) for header in headers.values() for name, entry in header.items()},
    )


def _stream(headers: dict[Path, dict[str, dict]]) -> Iterator[StoredTensor]:
    for file, header in headers.items():
        with _open(file) as handle:
            for name, entry in header.items():
                yield StoredTensor(name, handle.get_tensor(name), _num_bytes(entry))


def _read_header(file: Path) -> dict[str, dict]:
    """Tensor name -> its header entry, in file order; the file's own checks run as well."""
    check_regular(file, WeightsError)
    with _open(file):  # checks that header, byte ranges and file size agree, and the size of the header
        pass
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    return dict(sorted(header.items(), key=lambda item: item[1]["data_offsets"][0]))


def _open(file: Path) -> safe_open:
    try:
        return safe_open(file, framework="pt", device="cpu")
    except SafetensorError as error:
        raise WeightsError(
            f"{file}: truncated or damaged ({error}); not a complete safetensors file. Download it again."
        ) from error
    except OSError as error:
        raise WeightsError(f"{file}: cannot be read: {error}.") from error


def _num_bytes(entry: dict) -> int:
    start, end = entry["data_offsets"]
    return end - start


def _refuse_duplicates(headers: dict[Path, dict[str, dict]]) -> None:
    seen: dict[str, Path] = {}
    for file, header in headers.items():
        for name in header:
            if name in seen:
                raise WeightsError(
                    f"{file}: the tensor {name!r} is also in {seen[name].name}; keep one of them."
                )
            seen[name] = file
